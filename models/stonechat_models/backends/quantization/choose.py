"""Chooses the kind of quantised linear layer for a device.

On a CPU it uses the compiled kernels, or PyTorch if there is no compiler. On CUDA it uses torchao
for int8 and int4, and PyTorch's float8 product for fp8. On other devices there is only int8.
"""

import torch

from stonechat_models.backends.quantization.cpu_linear import (
    LinearTeam,
    NativeLinear,
    TorchLinear,
    WeightOnlyLinear,
)
from stonechat_models.backends.quantization.fp8_linear import fp8_linear
from stonechat_models.backends.quantization.linear import QuantizedLinear
from stonechat_models.backends.quantization.torchao_linear import torchao_linear
from stonechat_models.config import Precision
from stonechat_models.errors import UnsupportedModelError


def quantized_linear(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    precision: Precision,
    team: LinearTeam | None,
    kind: str | None = None,
) -> QuantizedLinear | None:
    """Build the layer for the device of weight[n, k]; `team`: the compiled kernels, if any.

    `kind`: the type of the device for which a layer without data is built, from a weight on the
    meta device. Returns None for a shape that the device's kernels do not support. Raises
    `UnsupportedModelError` for a weight without data if there is no `kind`, and for a precision
    that the kind of device does not support.
    """
    kind = kind or weight.device.type
    if kind == "meta":
        raise UnsupportedModelError(
            "weights that a device map keeps on disk or off their device cannot be quantised"
        )
    if kind != "cpu" and precision == "int8" and (kind != "cuda" or weight.dtype == torch.half):
        return WeightOnlyLinear(weight, bias)  # torchao's unscaled sums overflow in half precision
    if kind == "cuda":
        return cuda_linear(weight, bias, precision)
    if kind != "cpu" or precision == "fp8":
        raise UnsupportedModelError(f"{precision} weights are not supported on {kind}")
    if team is None:
        return TorchLinear(weight, bias, precision)
    return NativeLinear(weight, bias, precision, team)


def cuda_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision
) -> QuantizedLinear | None:
    """Build the layer for CUDA; return None for a shape that its kernels do not support."""
    if precision == "fp8":
        return fp8_linear(weight, bias)
    return torchao_linear(weight, bias, precision)
