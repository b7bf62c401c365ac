"""Puts fused modules in place of a model's own, where a trial shows that they are the same."""

import torch
from torch import nn

from stonechat_models.fused.modules import FusedRMSNorm, MergedMLP

TRIAL_ROWS = 5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference in a trial, relative to the largest output: a few roundings."""
NORM_VARIANTS = ((0.0, True), (1.0, False), (0.0, False))
"""(offset of the weight, whether the normalised row is rounded first) of the known families."""


@torch.no_grad()
def fuse_modules(module: nn.Module) -> int:
    """Replace RMS norms and SwiGLU blocks of `module` in place; says how many.

    A part that is not of a known kind, or whose replacement gives other numbers on random input,
    stays as it is.
    """
    num_replaced = 0
    names = [name for name, _ in module.named_modules() if name]
    for name in names:  # by name, so that nothing keeps the weights of a replaced part
        parent_name, _, own_name = name.rpartition(".")
        try:
            parent = module.get_submodule(parent_name)
            part = parent.get_submodule(own_name)
        except AttributeError:  # inside a part that was replaced
            continue
        replacement = _replacement(part)
        if replacement is not None:
            setattr(parent, own_name, replacement)
            num_replaced += 1
    return num_replaced


def _replacement(part: nn.Module) -> nn.Module | None:
    if isinstance(part, FusedRMSNorm | MergedMLP):
        return None
    if "RMSNorm" in type(part).__name__:
        return _fused_norm(part)
    if {"gate_proj", "up_proj", "down_proj"} <= part._modules.keys():
        return _merged_mlp(part)
    return None


def _fused_norm(norm: nn.Module) -> nn.Module | None:
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    for offset, rounds_first in NORM_VARIANTS:
        fused = FusedRMSNorm(weight, epsilon, offset, rounds_first)
        if _are_equal(norm, fused, weight.shape[0], weight):
            return fused
    return None


def _merged_mlp(mlp: nn.Module) -> nn.Module | None:
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if any(type(linear) is not nn.Linear for linear in (gate, up, down)):
        return None
    assert isinstance(gate, nn.Linear)
    assert isinstance(up, nn.Linear)
    assert isinstance(down, nn.Linear)
    if gate.weight.shape != up.weight.shape or (gate.bias is None) != (up.bias is None):
        return None
    merged = MergedMLP(gate, up, down)
    return merged if _are_equal(mlp, merged, gate.in_features, gate.weight) else None


def _are_equal(own: nn.Module, fused: nn.Module, size: int, like: torch.Tensor) -> bool:
    """Whether both give the same for random rows, within a few roundings."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, TRIAL_ROWS, size, generator=generator).to(like)
    try:
        expected = own(rows)
    except (TypeError, RuntimeError):  # it wants other arguments
        return False
    actual = fused(rows)
    if not isinstance(expected, torch.Tensor) or expected.dtype != actual.dtype:
        return False
    difference = (expected.float() - actual.float()).abs().max()
    return bool(difference <= TOLERANCE[like.dtype] * expected.float().abs().max())
