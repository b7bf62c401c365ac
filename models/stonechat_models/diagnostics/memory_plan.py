"""Calculates from a model's headers what serving it takes, before anything is loaded."""

from dataclasses import replace

from stonechat_models.checkpoint.cache import Progress
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.packed.folder import weight_headers
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.serving_forms import FormPlanner
from stonechat_models.diagnostics.survey import ModelSurvey, ServingForm
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware.device import choose_device, total_memory
from stonechat_models.model_file import reading
from stonechat_models.runtime.draft import draft_config, refuse_draft_model


def survey_model(config: EngineConfig, progress: Progress) -> ModelSurvey:
    """Calculate what the model of `config` takes on its device. May compile the CPU kernels.

    Raises `ModelLoadError` when its headers cannot be read, or the device does not exist. A model
    that would be refused is surveyed as far as possible, with `refusal` set.
    """
    device = choose_device(config.device_name)
    headers = read_headers(config, progress)
    with reading(headers.name):
        planner = FormPlanner(headers, replace(config, device=str(device)), device, progress)
        planner.check()
        draft = None
        if config.draft_model is not None:
            draft = _draft_form(planner, config, progress)
        forms = tuple(planner.forms())
    types: dict[str, int] = {}
    num_active = 0.0
    for tensor in weight_headers(headers, planner.packing):
        types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.num_elements
        share = headers.config.expert_share if ".experts." in tensor.name else 1.0
        num_active += tensor.num_elements * share
    return ModelSurvey(
        name=headers.name,
        architecture=headers.config.architecture,
        num_parameters=sum(types.values()),
        num_active_parameters=round(num_active),
        stored_bytes=sum(tensor.num_bytes for tensor in headers.tensors),
        stored_types=types,
        max_model_len=planner.max_model_len,
        device=str(device),
        total_memory=total_memory(device),
        free_memory=planner.free,
        refusal=next(iter(planner.refusals), None),
        native_refusal=planner.native_refusal,
        forms=forms,
        use=planner.use,
        attention=planner.attention if planner.native_refusal is not None else "",
        draft=draft,
        may_take_images=planner.may_take_images,
        image_refusal=planner.image_refusal,
        may_take_audio=planner.may_take_audio,
        audio_refusal=planner.audio_refusal,
        graphs_refusal=planner.graphs_refusal,
        num_ranks=planner.num_ranks,
        file_format=headers.weight_format,
    )


def _draft_form(
    planner: FormPlanner, config: EngineConfig, progress: Progress
) -> ServingForm | None:
    """Return what the draft model takes, and leave room for it beside the model of `planner`."""
    try:
        refuse_draft_model(config, planner.device.type)
    except ModelLoadError as error:
        planner.refusals.append(str(error))
        return None
    settings = replace(draft_config(config), device=str(planner.device))
    headers = read_headers(settings, progress)
    with reading(headers.name):
        draft_planner = FormPlanner(headers, settings, planner.device, progress)
        draft_planner.check()
        form = next((form for form in draft_planner.forms() if form.is_default), None)
    planner.refusals += draft_planner.refusals
    if form is not None:
        planner.leave_room(form.weight_bytes, form.kv_bytes_per_token)
    return form
