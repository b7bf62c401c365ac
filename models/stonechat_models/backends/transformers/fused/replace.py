"""Replaces parts of a model by fused modules, where a parity check shows that they are equal."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.moe.recognise_experts import (
    fused_experts,
    fused_mixture,
    is_experts,
)
from stonechat_models.backends.transformers.fused.moe.recognise_router import fused_router
from stonechat_models.backends.transformers.fused.parity_check import Call, record_calls
from stonechat_models.backends.transformers.fused.recognise import (
    fused_attention,
    fused_layer,
    fused_norm,
    is_known_attention,
    is_known_hybrid_attention,
    is_known_layer,
    merged_mlp,
)
from stonechat_models.backends.transformers.fused.recognise_mixers import (
    fused_hybrid_layer,
    fused_mixer,
    is_known_hybrid,
)
from stonechat_models.backends.transformers.tower_parts import tower_parts

logger = logging.getLogger(__name__)

Replacement = Callable[[str, nn.Module], nn.Module | None]
"""Maps a part and its name to what replaces it, if anything does."""


@torch.no_grad()
def fuse_modules(module: nn.Module) -> Counter[str]:
    """Replace parts of `module` in place. Returns the number of replacements per class name.

    The parts are RMS norms, gated MLPs, recurrent layers, experts and their routers. In a causal
    model of transformers they are also attention and whole decoder layers, which then run on packed
    tokens only; attention beside recurrent layers is left to `fuse_hybrid_attention`. A part stays
    as it is if its kind is not known, or if its replacement returns other numbers on random input.
    So do the parts of a vision tower. The original weights of merged layers are freed, part by
    part.
    """
    with _current_device(module):
        return _fuse(module)


@torch.no_grad()
def fuse_hybrid_attention(module: nn.Module) -> Counter[str]:
    """Replace attention beside recurrent layers, as `fuse_modules` does other attention."""
    replaced: Counter[str] = Counter()
    names = _names(module, is_known_hybrid_attention)
    with _current_device(module):
        _replace(module, names, _by_call(fused_attention, record_calls(module, names)), replaced)
    return replaced


def _current_device(module: nn.Module) -> AbstractContextManager[object]:
    """Triton launches on the thread's current device: here on that of the module."""
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(parameter.device)


def _by_call(
    fuse: Callable[[nn.Module, Call], nn.Module | None], calls: Mapping[str, Call]
) -> Replacement:
    return lambda name, part: fuse(part, calls[name]) if name in calls else None


def _fuse(module: nn.Module) -> Counter[str]:
    replaced: Counter[str] = Counter()
    attentions, layers = _names(module, is_known_attention), _names(module, is_known_layer)
    hybrids = _names(module, is_known_hybrid)
    calls = record_calls(module, attentions + layers + hybrids)

    def part(_: str, part: nn.Module) -> nn.Module | None:
        fused = fused_norm(part) or merged_mlp(part) or fused_experts(part) or fused_router(part)
        return fused or fused_mixer(part)

    vision = tower_parts(module)
    names = [name for name, part in module.named_modules() if name and part not in vision]
    _replace(module, names, part, replaced)
    _replace(module, names, lambda _, part: fused_mixture(part), replaced)
    for kind in sorted({type(part).__name__ for part in module.modules() if is_experts(part)}):
        logger.warning("%s runs as in transformers, and may wait for the device", kind)
    _replace(module, attentions, _by_call(fused_attention, calls), replaced)
    _replace(module, layers, _by_call(fused_layer, calls), replaced)  # last: it needs fused parts
    _replace(module, hybrids, _by_call(fused_hybrid_layer, calls), replaced)
    return replaced


def _names(module: nn.Module, is_match: Callable[[nn.Module], bool]) -> list[str]:
    return [name for name, part in module.named_modules() if is_match(part)]


def _replace(
    module: nn.Module,
    names: list[str],
    replacement_of: Replacement,
    replaced: Counter[str],
) -> None:
    """Replace parts by name, so that nothing keeps the weights of a replaced part alive."""
    for name in names:
        parent_name, _, child_name = name.rpartition(".")
        try:
            parent = module.get_submodule(parent_name)
            part = parent.get_submodule(child_name)
        except AttributeError:  # inside a part that was replaced
            continue
        replacement = replacement_of(name, part)
        if replacement is not None:
            setattr(parent, child_name, replacement)
            replaced[type(replacement).__name__] += 1
