"""How tiny models of every type are served. The docs list it; the tests measure it."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from stonechat_models.backends.native.plan.composites import (
    ONLY_GGUF,
    OWN_TEXT_PARTS,
    TEXT_PARTS,
)
from stonechat_models.backends.native.plan.families import FAMILIES
from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.kinds import auto_class, vocab_size
from stonechat_models.backends.transformers.loading.load import LoadSettings, _checked_model
from stonechat_models.backends.transformers.model import TransformersModel
from stonechat_models.backends.transformers.plain import PlainModel
from stonechat_models.backends.transformers.recurrent import RecurrentModel
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.support import context_length
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.speech import MODEL_TYPES as SPEECH_TYPES
from tests.models.engines import CPU, model_info
from tests.models.every_family import TYPES, hf_config, tiny_model

DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"
COMPILED_TYPES = (FAMILIES.keys() | OWN_TEXT_PARTS.keys() | TEXT_PARTS.keys()) - ONLY_GGUF
"""All types whose language model the native backend may run."""
COMPILED = "compiled on a CPU, else "
PAGED = "paged"
RECURRENT = "paged, with recurrent states"
RECURRENT_WHOLE = "paged, with recurrent states; prompts in one piece"
OWN = "own cache"
OWN_WHOLE = "own cache; prompts in one piece"
NO_CACHE = "no cache"
EMBEDDINGS_ONLY = "for embeddings only"
TRANSCRIPTIONS_ONLY = "for transcriptions only"
MARK = "<!-- model types: "
WAYS = (PAGED, RECURRENT, RECURRENT_WHOLE, OWN, OWN_WHOLE, NO_CACHE)
NEEDS_PACKAGES = "not tried: transformers builds it only with Pillow and timm installed"
UNTRIED = {"gemma3n": NEEDS_PACKAGES, "fast_vlm": NEEDS_PACKAGES, "perception_lm": NEEDS_PACKAGES}

AnyModel = TransformersModel | PlainModel


def load_tiny(model_type: str, **limits: int) -> AnyModel:
    """Return a tiny model, checked as at every load. Raises `UnsupportedModelError`."""
    auto_class(parse_config({"model_type": model_type}, model_type))
    config = hf_config(model_type)
    module = tiny_model(model_type)
    limits["max_model_len"] = min(limits["max_model_len"], context_length(config, None))
    info = model_info(vocab_size=vocab_size(module), **limits)
    dtype = torch.float32
    settings = LoadSettings(BatchedBackend(), None, dtype, dtype, dtype)
    model = _checked_model(
        module, info, settings, EngineConfig(model="tiny"), CPU, lambda line: None
    )
    info = model.info
    if info.keeps_state:
        num_snapshots = 6 if info.state_bytes and info.backend != "plain" else 0
        model.info = replace(info, num_state_slots=info.max_num_seqs + num_snapshots)
    if not info.exact_chunks:
        model.info = replace(model.info, max_batch_tokens=info.max_model_len)
    return model


def way_of(model: AnyModel) -> str:
    """Say how PyTorch serves a model."""
    is_exact = model.info.exact_chunks
    if isinstance(model, PlainModel):
        if not model.uses_caches:
            return NO_CACHE
        return OWN if is_exact else OWN_WHOLE
    if isinstance(model, RecurrentModel):
        return RECURRENT if is_exact else RECURRENT_WHOLE
    return PAGED


def measured_ways() -> dict[str, str]:
    """Build a tiny model of every type, and return how each is served, or why not."""
    ways = dict(UNTRIED) | dict.fromkeys(SPEECH_TYPES, TRANSCRIPTIONS_ONLY)
    for model_type in TYPES:
        if model_type not in ways:
            try:
                way = way_of(load_tiny(model_type, max_model_len=128))
                ways[model_type] = COMPILED + way if model_type in COMPILED_TYPES else way
            except UnsupportedModelError as error:
                if "make embeddings" in str(error):
                    ways[model_type] = EMBEDDINGS_ONLY
                    continue
                ways[model_type] = f"refused: {error}".replace(f" {model_type} ", " … ")
    return ways


def listing(ways: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of the list in the docs: an item for each way, with its types."""
    served = [prefix + way for prefix in (COMPILED, "") for way in WAYS]
    rest = sorted(set(ways.values()) - set(served))
    yield ""
    for way in (*served, *rest):
        if way not in ways.values():
            continue
        names = ", ".join(f"`{t}`" for t in sorted(ways) if ways[t] == way)
        yield from textwrap.wrap(
            f"- **{way}:** {names}", 100, subsequent_indent="  ", break_on_hyphens=False
        )


def documented_ways() -> dict[str, str]:
    """Return what the list in the docs says of each type."""
    text = DOCS.read_text(encoding="utf-8").partition(MARK)[2].partition("<!-- /")[0]
    items = " ".join(text.split()).split("- **")[1:]
    parts = [item.partition(":** ") for item in items]
    return {name: way for way, _, names in parts for name in re.findall(r"`(.+?)`", names)}
