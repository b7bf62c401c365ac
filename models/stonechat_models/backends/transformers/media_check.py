"""The check at load of models that take images: a step with images against the model's own code.

The images are random embeddings, so that no processor is needed. The model's own code gets them as
outputs of its vision tower, with what a processor says of the prompt, and finds masks and rotary
positions by itself. If a step of the engine gives other logits, the model takes no images.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from stonechat_models.backends.base import ForwardBatch, StepMedia
from stonechat_models.backends.transformers.cuda_memory import tower_memory
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.backends.transformers.verify import TOLERANCE, logits_error
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.attention_masks import bidirectional_layers, image_masks
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
PROMPT_LENGTH = 24
TEXT_LENGTH = 7
"""Tokens of another sequence in the same step."""
GRIDS = ((1, 2, 2), (1, 2, 4))
"""Patches of the images after merging: time, height, width."""
RUNS_PLAINLY = "it runs one sequence at a time"
TYPE_NAMES = ("mm_token_type_ids", "token_type_ids", "moe_mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class MediaCase:
    """A prompt with two images, and the logits [P, V] that the model's own code gives it."""

    info: ImageInfo
    token_ids: torch.Tensor
    embeddings: torch.Tensor
    layer_embeddings: list[torch.Tensor]
    rope_positions: torch.Tensor | None
    bidirectional_layers: frozenset[int]
    logits: torch.Tensor


def media_case(module: Any, num_ranks: int = 1) -> MediaCase | str:
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
    if not has_token or "mm_encoder_outputs" not in inspect.signature(module.forward).parameters:
        return "its code takes no images that are encoded before"
    try:
        bidirectional_layers(type(module), module.config)
    except UnsupportedModelError as error:
        return str(error)
    except Exception as error:  # whatever the model's own code raises
        return f"the masks of a prompt with images cannot be built: {error}"
    return ""


def with_media(
    model: TransformersModel | PlainModel, case: MediaCase | str, files: ModelFiles | None = None
) -> ModelInfo:
    """Return the model's info, which says whether it takes images.

    `files`: the model's, with its processor's; None: images are prepared elsewhere.
    """
    processor = None
    if not isinstance(case, str) and files is not None:
        processor = _processor(model.module, case, files)
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


def _processor(module: torch.nn.Module, case: MediaCase, files: ModelFiles) -> HFProcessor | str:
    """Return the model's processor, or why the model takes no images because of its files."""
    parts = tower_parts(module)
    vision = {name for name, part in module.named_modules() if part in parts}
    for adapter in files.adapters:
        if any(name.removesuffix(".weight") in vision for name in adapter.layers):
            return f"the adapter {adapter.name} changes its vision tower (--adapter merges one)"
    return checked_processor(files.folder, case.info.token_id)


def checked_images(model: TransformersModel, case: MediaCase) -> ImageInfo:
    """Compare a step with the case. Raises `UnsupportedModelError` if its logits differ."""
    model.bidirectional_layers = case.bidirectional_layers
    try:
        actual = _step_logits(model, case)
    except Exception as error:
        raise UnsupportedModelError(f"a step with images fails: {error}") from error
    errors = logits_error(case.logits, actual[: len(case.logits)].to(case.logits.device))
    dtype = next(model.module.parameters()).dtype
    # Rounding in half precision may let a router choose other experts at single tokens.
    worst = float(errors.max() if dtype is torch.float32 else errors.median())
    if worst > TOLERANCE["logits"].get(dtype, 0.25):
        raise UnsupportedModelError(
            "a step with images gives other logits than the model's own code (off by "
            f"{worst:.2g} standard deviations)"
        )
    return case.info


@torch.inference_mode()
def _run(module: Any) -> MediaCase:
    token_id = int(module.config.image_token_id)
    parameters = inspect.signature(module.forward).parameters
    table = module.get_input_embeddings()
    device, generator = table.weight.device, torch.Generator().manual_seed(0)
    token_ids = torch.randint(len(table.weight), (PROMPT_LENGTH,), generator=generator)
    token_ids[torch.isin(token_ids, torch.tensor(_marks(module.config)))] = 7
    types = torch.zeros_like(token_ids)
    for start, length in PLACES:
        token_ids[start : start + length] = token_id
        types[start : start + length] = 1
    num_embeddings = sum(length for _, length in PLACES)
    ids = torch.randint(
        len(table.weight), (1 + _num_layers(module), num_embeddings), generator=generator
    )
    embeddings, *layers = table(ids.to(device)).unbind(0)
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
    logits = _own_logits(module, arguments, embeddings, layers)
    info = ImageInfo(
        token_id=token_id, bidirectional=bool(both_ways), has_grid_positions=rope is not None
    )
    return MediaCase(info, token_ids.to(device), embeddings, layers, rope, both_ways, logits)


def _own_logits(
    module: Any,
    arguments: dict[str, Any],
    embeddings: torch.Tensor,
    layers: Sequence[torch.Tensor],
) -> torch.Tensor:
    """Return logits float32[P, V] of the model's own code."""
    lengths = [length for _, length in PLACES]
    outputs = SimpleNamespace(
        pooler_output=torch.split(embeddings, lengths),
        deepstack_features=[torch.split(layer, lengths) for layer in layers],
    )
    try:
        output = module(**arguments, mm_encoder_outputs={"image": outputs})
    except (AttributeError, TypeError):  # families differ in what their tower returns
        outputs.pooler_output = embeddings
        output = module(**arguments, mm_encoder_outputs={"image": outputs})
    logits: torch.Tensor = output.logits[0].float()
    return logits


def _step_logits(model: TransformersModel, case: MediaCase) -> torch.Tensor:
    """Return the logits of all tokens of a step with the case's prompt, and with a text."""
    info, device = model.info, case.token_ids.device
    lengths = [PROMPT_LENGTH, TEXT_LENGTH]
    width = -(-PROMPT_LENGTH // info.block_size)
    blocks = torch.arange(2 * width, dtype=torch.int32).view(2, width)
    positions = torch.cat([torch.arange(n) for n in lengths])
    rows = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))
    slots = blocks[rows, positions // info.block_size] * info.block_size
    text = torch.arange(TEXT_LENGTH, device=device)
    rope = case.rope_positions
    if rope is not None:
        rope = torch.cat([rope, text.expand(3, -1)], dim=1)
    places = torch.cat([torch.arange(start, start + n) for start, n in PLACES])
    ends = None
    if case.info.bidirectional:
        ends = (positions + 1).int()
        for start, length in PLACES:
            ends[start : start + length] = start + length
    query_start = [0, *accumulate(lengths)]
    batch = ForwardBatch(
        token_ids=torch.cat([case.token_ids, text]),
        positions=positions,
        slot_mapping=slots + positions % info.block_size,
        query_start=torch.tensor(query_start, dtype=torch.int32),
        context_lens=torch.tensor(lengths, dtype=torch.int32),
        block_table=blocks,
        logits_index=torch.arange(len(positions)),
        query_start_list=query_start,
        context_lens_list=lengths,
        state_slots=[0, 1],
        num_rows_list=lengths,
        media=StepMedia(places, case.embeddings, case.layer_embeddings, rope, ends),
    )
    try:
        model.info = replace(info, num_state_slots=2)
        model.allocate_kv_cache(2 * width, info.block_size)
        return model.forward(batch.to(device))
    finally:
        model.info = info


def _moved(masks: Any, device: torch.device) -> Any:
    if isinstance(masks, dict):
        return {kind: _moved(mask, device) for kind, mask in masks.items()}
    return None if masks is None else masks.to(device)


def _marks(config: Any) -> list[int]:
    """The tokens with a meaning of their own."""
    values = [value for name, value in vars(config).items() if name.endswith("_token_id")]
    return [value for value in values if isinstance(value, int)]


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
