"""Tiny models with vision towers, and steps of images for the native backend."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stonechat_models.backends.base import HostBatch, StepMedia
from stonechat_models.backends.transformers.media_checks.images import forward_with_outputs
from stonechat_models.checkpoint.hf_config import read_config
from stonechat_models.checkpoint.resolve import ModelFiles
from tests.models.backends.native.native_helpers import COMMON, DELTA_RULE, host_batch, make_batch

IMAGE_ID = 202
"""The placeholder token, the last of the vocabulary."""
LISTED = ("lfm2_vl", "llava", "llava_next", "llava_onevision", "mistral3")
"""Models whose features are a list of those of each image, besides those with M-RoPE."""
_TEXT: dict[str, Any] = {**COMMON, "num_hidden_layers": 3}
_SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
}
_QWEN_TOWER = {"depth": 2, "num_heads": 2, "patch_size": 4, "hidden_size": 128}
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
COMPOSITES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        {
            **_TEXT,
            "head_dim": 64,
            "sliding_window": 19,
            "query_pre_attn_scalar": 48,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        {"vision_config": _SIGLIP, "mm_tokens_per_image": 4},
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {**_TEXT, "rope_parameters": _MROPE},
        {"vision_config": {**_QWEN_TOWER, "embed_dim": 32}},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {**_TEXT, "rope_parameters": _MROPE},
        {
            "vision_config": {
                **_QWEN_TOWER,
                "hidden_size": 32,
                "out_hidden_size": 128,
                "intermediate_size": 48,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            }
        },
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {**_TEXT, "head_dim": 64, "rope_parameters": {**_MROPE, "mrope_section": [12, 10, 10]}},
        {
            "vision_config": {
                **_QWEN_TOWER,
                "hidden_size": 32,
                "out_hidden_size": 128,
                "intermediate_size": 48,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            }
        },
    ),
    "qwen3_5": (
        "Qwen3_5Config",
        {
            **_TEXT,
            **DELTA_RULE,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [3, 3, 2],
                "partial_rotary_factor": 0.25,
            },
        },
        {
            "vision_config": {
                **_QWEN_TOWER,
                "hidden_size": 32,
                "out_hidden_size": 128,
                "intermediate_size": 48,
                "num_position_embeddings": 64,
            }
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {**_TEXT, "model_type": "mistral", "sliding_window": None, "head_dim": 32},
        {
            "vision_config": {
                **_SIGLIP,
                "model_type": "pixtral",
                "head_dim": 16,
                "image_size": 64,
                "patch_size": 4,
            },
            "spatial_merge_size": 2,
            "vision_feature_layer": -1,
        },
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {**_TEXT, "model_type": "llama"},
        {"vision_config": {**_SIGLIP, "patch_size": 14}, "scale_factor": 2},
    ),
    "idefics3": (
        "Idefics3Config",
        {**_TEXT, "model_type": "llama"},
        {"vision_config": {**_SIGLIP, "patch_size": 14}, "scale_factor": 2},
    ),
    "internvl": (
        "InternVLConfig",
        {**_TEXT, "model_type": "qwen3", "head_dim": 64},
        {"vision_config": {**_SIGLIP, "image_size": [28, 28], "patch_size": [7, 7]}},
    ),
    "llava": (
        "LlavaConfig",
        {**_TEXT, "model_type": "mistral", "sliding_window": None},
        {"vision_config": {**_SIGLIP, "model_type": "clip_vision_model"}},
    ),
    "llava_next": (
        "LlavaNextConfig",
        {**_TEXT, "model_type": "llama"},
        {
            "vision_config": {**_SIGLIP, "model_type": "clip_vision_model"},
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        },
    ),
    "llava_onevision": (
        "LlavaOnevisionConfig",
        {**_TEXT, "model_type": "qwen2"},
        {
            "vision_config": {**_SIGLIP, "model_type": "siglip_vision_model"},
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
        },
    ),
    "lfm2_vl": (
        "Lfm2VlConfig",
        {
            **_TEXT,
            "model_type": "lfm2",
            "layer_types": ["conv", "full_attention", "conv"],
            "block_multiple_of": 32,
        },
        {"vision_config": {**_SIGLIP, "num_patches": 64, "patch_size": 4}, "downsample_factor": 2},
    ),
}
"""Config class, settings of the language model, and other settings of each family."""


def make_composite(family: str, folder: Path, **changes: Any) -> tuple[Any, ModelFiles]:
    """Create a random module with a vision tower and its files. `changes`: of the text part."""
    import transformers

    name, text, others = COMPOSITES[family]
    ids = {"image_token_id": IMAGE_ID, "image_token_index": IMAGE_ID, "tie_word_embeddings": False}
    config = getattr(transformers, name)(text_config={**text, **changes}, **others, **ids)
    torch.manual_seed(len(family))
    module = transformers.AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            is_norm = "norm" in parameter_name or "ln_" in parameter_name
            if parameter.dim() == 1:
                center = 1.0 if is_norm and family != "gemma3" else 0.0
                parameter.copy_(center + 0.3 * torch.randn_like(parameter))
            elif parameter.dim() == 2:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    module.eval().save_pretrained(folder)
    files = ModelFiles(
        family,
        folder,
        read_config(folder / "config.json"),
        None,
        tuple(sorted(folder.glob("*.safetensors"))),
    )
    return module, files


@dataclass
class Prompt:
    """A prompt of text and images: token ids, and random features of its placeholders."""

    ids: list[int]
    is_image: npt.NDArray[np.bool_]
    embeddings: torch.Tensor
    """float32[I, H]"""
    layer_embeddings: tuple[torch.Tensor, ...]
    rope_positions: npt.NDArray[np.int64] | None
    """int64[3, P]"""
    is_bidirectional: bool

    def visible_ends(self) -> npt.NDArray[np.int32]:
        """int32[P]: where the run of placeholders of each token ends; behind itself for text."""
        ends = np.arange(1, len(self.ids) + 1, dtype=np.int32)
        for p in range(len(self.ids) - 2, -1, -1):
            if self.is_image[p] and self.is_image[p + 1]:
                ends[p] = ends[p + 1]
        return ends

    def media(self, start: int, end: int) -> StepMedia:
        """What the tokens start..end-1 need of the images."""
        before = int(self.is_image[:start].sum())
        rows = np.flatnonzero(self.is_image[start:end])
        own = slice(before, before + rows.size)
        positions = self.rope_positions
        return StepMedia(
            rows=rows,
            embeddings=self.embeddings[own].numpy(),
            layer_embeddings=[added[own].numpy() for added in self.layer_embeddings],
            rope_positions=None if positions is None else positions[:, start:end],
            visible_ends=self.visible_ends()[start:end] if self.is_bidirectional else None,
        )


def make_prompt(family: str, runs: Sequence[int], *, seed: int = 0, layers: int = 2) -> Prompt:
    """Return a prompt: 11 tokens of text before each run of placeholders, and 9 at the end."""
    random = np.random.default_rng(seed)
    ids: list[int] = []
    for run in runs:
        ids += [*random.integers(0, IMAGE_ID, 11).tolist(), *[IMAGE_ID] * run]
    ids += random.integers(0, IMAGE_ID, 9).tolist()
    size = (sum(runs), COMMON["hidden_size"])

    def draw() -> torch.Tensor:
        return torch.from_numpy(random.standard_normal(size, dtype=np.float32))

    has_axes = family.startswith("qwen")
    positions = np.sort(random.integers(0, len(ids), (3, len(ids))), axis=1) if has_axes else None
    return Prompt(
        ids=ids,
        is_image=np.array(ids) == IMAGE_ID,
        embeddings=draw(),
        layer_embeddings=tuple(draw() for _ in range(layers)) if family == "qwen3_vl" else (),
        rope_positions=positions,
        is_bidirectional=family == "gemma3",
    )


def reference_logits(module: Any, prompt: Prompt) -> torch.Tensor:
    """The logits of all tokens, as transformers computes them of the same features."""
    from transformers.utils import ModelOutput

    ids = torch.tensor([prompt.ids])
    features = ModelOutput(pooler_output=prompt.embeddings)
    arguments: dict[str, Any] = {}
    if prompt.rope_positions is not None:
        positions = torch.from_numpy(prompt.rope_positions)[:, None]
        plain = torch.arange(len(prompt.ids))[None, None]
        arguments["position_ids"] = torch.cat([plain, positions])
        features["pooler_output"] = [prompt.embeddings]
        is_whole = "mm_encoder_outputs" not in inspect.signature(module.forward).parameters
        features["deepstack_features"] = [
            added if is_whole else [added] for added in prompt.layer_embeddings
        ]
    if prompt.is_bidirectional:
        arguments["token_type_ids"] = torch.from_numpy(prompt.is_image)[None].long()
    if module.config.model_type in LISTED:
        features["pooler_output"] = [prompt.embeddings]
    arguments |= {"input_ids": ids, "use_cache": False}
    with torch.inference_mode():
        logits: torch.Tensor = forward_with_outputs(module, arguments, features).logits[0]
    return logits.float()


def step_of(
    parts: Sequence[tuple[Prompt | list[int], int, int, list[int]]], *, all_rows: bool = False
) -> HostBatch:
    """Build a step. A part is (a prompt or the ids of a text, first token, end, block table)."""
    ids = [p.ids if isinstance(p, Prompt) else p for p, *_ in parts]
    sequences = [
        (own[start:end], start, blocks)
        for own, (_, start, end, blocks) in zip(ids, parts, strict=True)
    ]
    batch = host_batch(make_batch(sequences, all_rows=all_rows))
    first = 0
    pieces: list[StepMedia] = []
    offsets = []
    for prompt, start, end, _ in parts:
        pieces.append(prompt.media(start, end) if isinstance(prompt, Prompt) else _no_images())
        offsets.append(first)
        first += end - start
    prompts = [p for p, *_ in parts if isinstance(p, Prompt)]
    if not prompts:
        return batch
    hidden = prompts[0].embeddings.shape[1]
    plain = np.array(batch.positions)
    positions = np.tile(plain, (3, 1))
    ends = (plain + 1).astype(np.int32)
    for piece, offset, (_, start, end, _) in zip(pieces, offsets, parts, strict=True):
        own = slice(offset, offset + end - start)
        if piece.rope_positions is not None:
            positions[:, own] = piece.rope_positions
        if piece.visible_ends is not None:
            ends[own] = piece.visible_ends
    layers = max(len(p.layer_embeddings) for p in prompts)
    empty = np.empty((0, hidden), dtype=np.float32)
    batch.media = StepMedia(
        rows=np.concatenate([p.rows + o for p, o in zip(pieces, offsets, strict=True)]),
        embeddings=np.concatenate([empty, *(p.embeddings for p in pieces if len(p.rows))]),
        layer_embeddings=[
            np.concatenate([empty, *(p.layer_embeddings[i] for p in pieces if len(p.rows))])
            for i in range(layers)
        ],
        rope_positions=positions if prompts[0].rope_positions is not None else None,
        visible_ends=ends if prompts[0].is_bidirectional else None,
    )
    return batch


def _no_images() -> StepMedia:
    return StepMedia(rows=np.empty(0, dtype=np.int64), embeddings=np.empty((0, 0)))
