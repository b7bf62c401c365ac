"""The check at load of models that take images.

The images are random embeddings, so that no processor is needed. The model's own code gets them as
outputs of its vision tower, with what a processor says of the prompt, and finds masks and rotary
positions by itself. If a step of the engine gives other logits, the model takes no images.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPooling

from stonechat_models.backends.transformers.cuda.memory import tower_memory
from stonechat_models.backends.transformers.media_checks.common import (
    RUNS_PLAINLY,
    MediaCase,
    adapter_refusal,
    check_case,
    random_text,
)
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.attention_masks import bidirectional_layers, image_masks
from stonechat_models.media.encode import projects_later
from stonechat_models.media.hf_processor import (
    HFProcessor,
    as_tensors,
    checked_processor,
    large_image,
)
from stonechat_models.media.positions import grid_positions, rope_index_of
from stonechat_models.model_info import ImageInfo, ModelInfo
from stonechat_models.types import MediaInput

PLACES = ((5, 4), (12, 8))
"""Where the images of the check are in its prompt: (start, length)."""
PART_LENGTH = 4
"""Divides the lengths, for models whose images are parts of one length."""
PROMPT_LENGTH = 24
GRIDS = ((1, 2, 2), (1, 2, 4))
"""Patches of the images after merging: time, height, width."""
TYPE_NAMES = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


def image_case(module: Any, num_ranks: int = 1) -> MediaCase | str:
    """Run the model's own code on the check's prompt. Call before `module` is changed.

    Returns why the model takes no images if that is sure already; empty for a model of text alone.
    """
    if getattr(module.config, "vision_config", None) is None:
        return ""
    refusal = code_refusal(module, num_ranks)
    if refusal:
        return refusal
    try:
        return _run(module)
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:  # whatever the model's own code raises
        return f"a forward pass with images fails: {error}"


def code_refusal(module: Any, num_ranks: int = 1) -> str:
    """Return why a model that could take images takes none, as far as its code says; or nothing."""
    if num_ranks > 1:
        return "several devices share the model"
    has_token = getattr(module.config, "image_token_id", None) is not None
    if (
        not has_token
        or _outputs_argument(module) not in inspect.signature(module.forward).parameters
    ):
        return "its code takes no images that are encoded before"
    try:
        bidirectional_layers(type(module), module.config)
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:  # whatever the model's own code raises
        return f"the masks of a prompt with images cannot be built: {error}"
    return ""


def with_images(
    model: TransformersModel | PlainModel, case: MediaCase | str, files: ModelFiles | None = None
) -> ModelInfo:
    """Return the model's info, which says whether it takes images.

    `files`: the model's, with its processor's; None: images are prepared elsewhere.
    """
    processor = None
    if not isinstance(case, str) and files is not None:
        processor = adapter_refusal(model.module, files.adapters) or checked_processor(
            files.folder, "image", case.info.token_id
        )
        if isinstance(processor, str):
            case = processor
    if case == "" and files is not None and files.config.raw.get("vision_config"):
        case = "only its language model is served"
    if isinstance(case, str):
        reason = case or (files.image_refusal if files is not None else "")
        return replace(model.info, image_refusal=reason)
    if not isinstance(model, TransformersModel):
        return replace(model.info, image_refusal=RUNS_PLAINLY)
    try:
        images = checked_images(model, case)
        if isinstance(processor, HFProcessor) and model.info.device.startswith("cuda"):
            images = replace(images, encoding_bytes=_encoding_bytes(model, processor))
        return replace(model.info, images=images)
    except UnsupportedModelError as error:
        model.bidirectional_layers = frozenset()
        return replace(model.info, images=None, image_refusal=str(error))


def _encoding_bytes(model: TransformersModel, processor: HFProcessor) -> int:
    """Measure what the tower takes. Raises `UnsupportedModelError` if it fails."""
    try:
        return tower_memory(model, large_image(processor), model.device)
    except UnsupportedModelError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise UnsupportedModelError(f"its vision tower fails: {error}") from error


def checked_images(model: TransformersModel, case: MediaCase) -> ImageInfo:
    """Compare a step with the case. Raises `UnsupportedModelError` if its logits differ."""
    model.bidirectional_layers = case.bidirectional_layers
    check_case(model, case, "images")
    assert isinstance(case.info, ImageInfo)
    return case.info


@torch.inference_mode()
def _run(module: Any) -> MediaCase:
    token_id = int(module.config.image_token_id)
    parameters = inspect.signature(module.forward).parameters
    table = module.get_input_embeddings()
    device, generator = table.weight.device, torch.Generator().manual_seed(0)
    token_ids = random_text(module, PROMPT_LENGTH)
    types = torch.zeros_like(token_ids)
    for start, length in PLACES:
        token_ids[start : start + length] = token_id
        types[start : start + length] = 1
    num_embeddings = sum(length for _, length in PLACES)
    ids = torch.randint(
        len(table.weight), (1 + _num_layers(module), num_embeddings), generator=generator
    )
    embeddings, *layers = table(ids.to(device)).unbind(0)
    states = None
    if projects_later(module):
        width = module.config.vision_config.vision_output_dim
        states = torch.randn(num_embeddings, width, generator=generator).to(embeddings)
        embeddings = module.multi_modal_projector(states)
    arguments: dict[str, Any] = {
        "input_ids": token_ids.unsqueeze(0).to(device),
        "use_cache": False,
        **{name: types.unsqueeze(0).to(device) for name in TYPE_NAMES if name in parameters},
    }
    rope = None
    if rope_index_of(module) is not None:
        images = _grid_images(module.config.vision_config)
        arguments["image_grid_thw"] = torch.tensor(_grids(module.config.vision_config)).to(device)
        rope = torch.from_numpy(grid_positions(module, token_ids.tolist(), images)[0]).to(device)
    both_ways = bidirectional_layers(type(module), module.config)
    if both_ways:
        masks = image_masks(type(module), module.config, types.bool(), embeddings.dtype)
        arguments["attention_mask"] = _moved(masks, device)
    module.set_attn_implementation("eager")
    logits = _own_logits(module, arguments, embeddings, layers, states)
    info = ImageInfo(
        token_id=token_id, bidirectional=bool(both_ways), has_grid_positions=rope is not None
    )
    return MediaCase(
        info, token_ids.to(device), PLACES, embeddings, logits, layers, rope, both_ways
    )


def _own_logits(
    module: Any,
    arguments: dict[str, Any],
    embeddings: torch.Tensor,
    layers: Sequence[torch.Tensor],
    states: torch.Tensor | None,
) -> torch.Tensor:
    """Return logits float32[P, V] of the model's own code.

    `states`: what becomes the embeddings, if the model's own code makes these of them.
    """
    lengths = [length for _, length in PLACES]
    outputs = BaseModelOutputWithPooling(last_hidden_state=states)
    is_whole = _outputs_argument(module) == "pixel_values"
    outputs.deepstack_features = [
        layer if is_whole else torch.split(layer, lengths) for layer in layers
    ]
    parts = embeddings.view(-1, PART_LENGTH, embeddings.shape[-1])
    for form in (torch.split(embeddings, lengths), embeddings, parts):  # families differ in it
        outputs.pooler_output = form
        try:
            output = forward_with_outputs(module, arguments, outputs)
            break
        except (AttributeError, TypeError, ValueError):
            if form is parts:
                raise
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _outputs_argument(module: Any) -> str:
    """The argument by which a model's code gets images. In older versions of transformers some
    models, and before 5.18 all, get pixels alone, and call their tower themselves."""
    is_old = Version(transformers.__version__) < Version("5.24")
    takes_outputs = "mm_encoder_outputs" in inspect.signature(module.forward).parameters
    return "pixel_values" if is_old and not takes_outputs else "mm_encoder_outputs"


def forward_with_outputs(module: Any, arguments: dict[str, Any], outputs: Any) -> Any:
    """Run a model's own code with what stands for the outputs of its vision tower."""
    if _outputs_argument(module) == "mm_encoder_outputs":
        return module(**arguments, mm_encoder_outputs={"image": outputs})
    owner = module.base_model
    owner.get_image_features = lambda *_, **__: outputs
    try:
        return module(**arguments, pixel_values=torch.zeros(1))
    finally:
        del owner.get_image_features


def _moved(masks: Any, device: torch.device) -> Any:
    if isinstance(masks, dict):
        return {kind: _moved(mask, device) for kind, mask in masks.items()}
    return None if masks is None else masks.to(device)


def _num_layers(module: Any) -> int:
    """How many layers add embeddings of their own (DeepStack)."""
    return len(getattr(module.config.vision_config, "deepstack_visual_indexes", None) or ())


def _grids(vision: Any) -> list[tuple[int, int, int]]:
    """The images' patches before merging."""
    merge = int(getattr(vision, "spatial_merge_size", 1))
    return [(time, height * merge, width * merge) for time, height, width in GRIDS]


def _grid_images(vision: Any) -> list[MediaInput]:
    images = []
    for place, grid in zip(PLACES, _grids(vision), strict=True):
        tensors = as_tensors({"image_grid_thw": np.array([grid], dtype="<i8")})
        images.append(MediaInput(b"", (place,), tensors))
    return images
