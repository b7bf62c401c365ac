"""Recognises experts modules of transformers' common layout, and builds their replacements.

That module holds all experts of a layer in 3-D weights. Its attributes describe them; its
`_apply_gate` is what happens between its two products.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.fused.modules import MergedMLP
from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.moe.experts import (
    Activation,
    ExpertLinear,
    FusedExperts,
    tiles_of,
)
from stonechat_models.backends.transformers.fused.moe.mixture import FusedMixture
from stonechat_models.backends.transformers.fused.moe.router import FusedRouter
from stonechat_models.backends.transformers.fused.parity_check import (
    PARITY_ROWS,
    agree,
    output_of,
    random_rows,
)

FLAGS = ("is_transposed", "has_gate", "has_bias", "_apply_gate")
UNKNOWN = ("has_post_expert_norm", "_is_expert_parallel")
"""What newer versions of transformers have, and the replacement does not."""
PARITY_EXPERTS = 3
"""Experts of each token in a parity check."""
ACTIVATION_ROWS = 64
ACTIVATION_SIZE = 64
ACTIVATION_SCALE = 12.0
"""The size of numbers that find an activation: beyond the limits that clamp them."""
ACTIVATION_TOLERANCE = 1e-4


def fused_experts(module: nn.Module) -> FusedExperts | None:
    """A replacement that shares the weights of `module`, or None."""
    fused = _build(module) if is_experts(module) else None
    return fused if fused is not None and _is_right(module, fused) else None


def fused_mixture(module: nn.Module) -> FusedMixture | None:
    """A replacement for a block of nothing but the fused parts of `FusedMixture`, or None."""
    children = [part for part in module._modules.values() if part is not None]
    parts = {type(part): part for part in children}
    router, experts = parts.get(FusedRouter), parts.get(FusedExperts)
    shared = parts.get(MergedMLP)
    if not isinstance(router, FusedRouter) or not isinstance(experts, FusedExperts):
        return None
    if len(children) != (2 if shared is None else 3) or isinstance(module, FusedMixture):
        return None
    if module._parameters or module._buffers:
        return None
    rows = random_rows((1, PARITY_ROWS, experts.down.shape[1]), experts.up.weight)
    expected = output_of(module, rows)
    is_pair = isinstance(expected, tuple)
    fused = FusedMixture(
        router, experts, shared if isinstance(shared, MergedMLP) else None, is_pair=is_pair
    )
    actual = output_of(fused, rows)
    if isinstance(expected, tuple) and isinstance(actual, tuple):
        return fused if all(map(agree, expected, actual)) else None
    return fused if agree(expected, actual) else None


def is_experts(module: nn.Module) -> bool:
    """Whether this is a module of the common layout."""
    return all(hasattr(module, flag) for flag in FLAGS)


def _build(module: Any) -> FusedExperts | None:
    names = ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")
    bias_names = tuple(f"{name}_bias" for name in names) if module.has_bias else ()
    if module._parameters.keys() != {*names, *bias_names} or module._buffers:
        return None
    up, down = (module._parameters[name] for name in names)
    dtypes = {parameter.dtype for parameter in module._parameters.values()}
    if up.dim() != 3 or down.dim() != 3 or up.is_meta or len(dtypes) != 1:
        return None
    biases = [module._parameters[name] for name in bias_names] or [None, None]
    activation = activation_of(module, up.device)
    if activation is None:
        return None
    up, down = (
        ExpertLinear(weight, bias, is_transposed=module.is_transposed)
        for weight, bias in zip((up, down), biases, strict=True)
    )
    return FusedExperts(up, down, activation)


def activation_of(module: Any, device: torch.device) -> Activation | None:
    """The activation that gives the numbers of the module's own, over a wide range.

    None if there is none, or if its experts do more. Its weights may be on the meta device.
    """
    if any(getattr(module, name, False) for name in UNKNOWN):
        return None
    function = module._apply_gate if module.has_gate else module.act_fn
    x = random_rows((ACTIVATION_ROWS, ACTIVATION_SIZE), torch.empty(0, device=device))
    x *= ACTIVATION_SCALE
    expected = output_of(function, x)
    if not isinstance(expected, torch.Tensor):
        return None
    for activation in _candidates(module):
        actual = activation(x)
        if actual.shape == expected.shape and torch.allclose(
            actual, expected, rtol=ACTIVATION_TOLERANCE, atol=ACTIVATION_TOLERANCE
        ):
            return activation
    return None


def _candidates(module: Any) -> Iterator[Activation]:
    silu, plain = kernels.SILU.value, (kernels.GELU_TANH.value, kernels.GELU.value)
    if not module.has_gate:
        for kind in (kernels.RELU_SQUARED.value, silu, *plain):
            yield Activation(kind, is_gated=False)
        return
    limits = [float("inf"), *_numbers(module, "limit", "swiglu_limit")]
    for is_interleaved in (False, True):
        for limit in limits:
            for kind in (silu, *plain):
                yield Activation(kind, is_interleaved=is_interleaved, limit=limit)
            for alpha in _numbers(module, "alpha", "swiglu_alpha"):
                yield Activation(
                    silu, is_interleaved=is_interleaved, alpha=alpha, limit=limit, offset=1.0
                )


def _numbers(module: Any, *names: str) -> list[float]:
    values = [getattr(module, name, None) for name in names]
    return [float(value) for value in values if isinstance(value, int | float)]


def _is_right(module: nn.Module, fused: FusedExperts) -> bool:
    """Whether it gives the module's numbers: with every tile, and for a single token."""
    num_experts, _, size = fused.up.shape
    weight = fused.up.weight
    rows = random_rows((PARITY_ROWS, size), weight)
    scores = random_rows((PARITY_ROWS, num_experts), torch.empty(0, device=weight.device))
    top_k = min(PARITY_EXPERTS, num_experts)
    values, ids = scores.topk(top_k)
    routing = values.softmax(dim=-1).to(weight.dtype)
    expected = output_of(module, rows, ids, routing)
    if not isinstance(expected, torch.Tensor):
        return False
    for tile in tiles_of(weight.dtype).values():
        if not agree(expected, output_of(fused, rows, ids, routing, tile)):
            return False
    return agree(expected[:1], output_of(fused, rows[:1], ids[:1], routing[:1]))
