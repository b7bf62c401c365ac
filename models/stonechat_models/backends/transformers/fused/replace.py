"""Replaces parts of a model by fused modules, where a parity check shows that they are equal."""

import logging
from collections import Counter
from collections.abc import Callable

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.moe.recognise_experts import (
    fused_experts,
    fused_mixture,
    is_experts,
)
from stonechat_models.backends.transformers.fused.moe.recognise_router import fused_router
from stonechat_models.backends.transformers.fused.parity_check import record_calls
from stonechat_models.backends.transformers.fused.recognise import (
    fused_attention,
    fused_layer,
    fused_norm,
    is_known_attention,
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


@torch.no_grad()
def fuse_modules(module: nn.Module) -> Counter[str]:
    """Replace parts of `module` in place. Returns the number of replacements per class name.

    The parts are RMS norms, gated MLPs, recurrent layers, experts and their routers. In a causal
    model of transformers they are also attention and whole decoder layers, which then run on packed
    tokens only. A part stays as it is if its kind is not known, or if its replacement returns other
    numbers on random input. So do the parts of a vision tower. The original weights of merged
    layers are freed, part by part.
    """
    parameter = next(module.parameters(), None)
    if parameter is None or parameter.device.type != "cuda":
        return _fuse(module)
    with torch.cuda.device(parameter.device):  # Triton launches on the thread's current one
        return _fuse(module)


def _fuse(module: nn.Module) -> Counter[str]:
    replaced: Counter[str] = Counter()
    attentions, layers = _names(module, is_known_attention), _names(module, is_known_layer)
    hybrids = _names(module, is_known_hybrid)
    calls = record_calls(module, attentions + layers + hybrids)

    def attention(name: str, part: nn.Module) -> nn.Module | None:
        return fused_attention(part, calls[name]) if name in calls else None

    def layer(name: str, part: nn.Module) -> nn.Module | None:
        return fused_layer(part, calls[name]) if name in calls else None

    def hybrid(name: str, part: nn.Module) -> nn.Module | None:
        return fused_hybrid_layer(part, calls[name]) if name in calls else None

    def part(_: str, part: nn.Module) -> nn.Module | None:
        fused = fused_norm(part) or merged_mlp(part) or fused_experts(part) or fused_router(part)
        return fused or fused_mixer(part)

    vision = tower_parts(module)
    names = [name for name, part in module.named_modules() if name and part not in vision]
    _replace(module, names, part, replaced)
    _replace(module, names, lambda _, part: fused_mixture(part), replaced)
    for kind in sorted({type(part).__name__ for part in module.modules() if is_experts(part)}):
        logger.warning("%s runs as in transformers, and may wait for the device", kind)
    _replace(module, attentions, attention, replaced)
    _replace(module, layers, layer, replaced)  # last: it needs the fused parts
    _replace(module, hybrids, hybrid, replaced)
    return replaced


def _names(module: nn.Module, is_match: Callable[[nn.Module], bool]) -> list[str]:
    return [name for name, part in module.named_modules() if is_match(part)]


def _replace(
    module: nn.Module,
    names: list[str],
    replacement_of: Callable[[str, nn.Module], nn.Module | None],
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
