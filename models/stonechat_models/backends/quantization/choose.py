"""Chooses the layer with quantised weights that a device can run.

On a CPU the compiled kernels run where there is a compiler, else PyTorch does. On CUDA weights go
through torchao or are float8; on other devices they are int8.
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
    weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision, team: LinearTeam | None
) -> QuantizedLinear | None:
    """The form for the device that weight[n, k] is on; `team`: the compiled kernels, if any.

    None for a shape that the device's kernels cannot take. Raises `UnsupportedModelError` for a
    weight that is nowhere, and for a precision that its kind of device does not have.
    """
    kind = weight.device.type
    if kind == "meta":
        raise UnsupportedModelError(
            "a device map that keeps weights on disk or off their device cannot be quantised"
        )
    if kind != "cpu" and precision == "int8" and (kind != "cuda" or weight.dtype == torch.half):
        return WeightOnlyLinear(weight, bias)  # torchao's sums of codes overflow in half precision
    if kind == "cuda":
        return cuda_linear(weight, bias, precision)
    if kind != "cpu" or precision == "fp8":
        raise UnsupportedModelError(f"{precision} is not for weights on {kind}")
    if team is None:
        return TorchLinear(weight, bias, precision)
    return NativeLinear(weight, bias, precision, team)


def cuda_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision
) -> QuantizedLinear | None:
    """The form for CUDA; None for a shape that its kernels cannot take."""
    if precision == "fp8":
        return fp8_linear(weight, bias)
    return torchao_linear(weight, bias, precision)
