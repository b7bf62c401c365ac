"""Linear layers on a CUDA device with weights that torchao quantises and multiplies.

- int8: a scale an output channel. Each call writes the weight out in the dtype of the activations.
- int4: groups of 32 with a scale and an offset, for PyTorch's kernel that reads the codes. The
  weight is filled up to a multiple of 1024 inputs.
- fp8: float8_e4m3fn with a scale an output channel, and activations with a scale a row, found in
  each call. The product is one of float8 numbers.

Written for torchao 0.18; see docs/gpu.md for what has been run.
"""

from typing import Any

import torch
import torch.nn.functional as F

from stonechat_models.config import Precision
from stonechat_models.group_codes import GROUP
from stonechat_models.quantized_linear import QuantizedLinear

FP8_MULTIPLE = 16
"""Both sizes of a matrix that float8 products take are multiples of this."""
LEAST_PEAK = 1e-10
"""Largest value that a row of zeros is taken to have: its scale would be 0, and 0 / 0 its codes."""


class TorchaoLinear(QuantizedLinear):
    """Multiplies by a weight of torchao's, which keeps codes and scales as tensors of its own."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape)
        self._weight = weight
        self._bias = None if bias is None else bias.detach()

    @property
    def num_bytes(self) -> int:
        tensors = [*_parts(self._weight), *([] if self._bias is None else [self._bias])]
        return sum(t.numel() * t.element_size() for t in tensors)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x may come from another device: a device map's hooks do not know this layer."""
        x = x.to(self._weight.device, self._weight.dtype).contiguous()
        return F.linear(x, self._weight, self._bias)


def torchao_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision
) -> TorchaoLinear | None:
    """Quantise weight[n, k]; None for a shape that the kernels cannot take.

    int4 and fp8 are for bfloat16 weights.
    """
    if not _fits(weight, precision):
        return None
    weight = weight.detach().contiguous()
    quantise = {"int8": _int8, "int4": _int4, "fp8": _fp8}[precision]
    return TorchaoLinear(quantise(weight), bias)


def _fits(weight: torch.Tensor, precision: Precision) -> bool:
    if precision == "fp8":
        return all(size % FP8_MULTIPLE == 0 for size in weight.shape)
    return precision == "int8" or weight.shape[1] % GROUP == 0


def _int8(weight: torch.Tensor) -> torch.Tensor:
    from torchao.quantization import Int8Tensor, PerRow

    quantised: torch.Tensor = Int8Tensor.from_hp(weight, granularity=PerRow())
    return quantised


def _int4(weight: torch.Tensor) -> torch.Tensor:
    from torchao.quantization import Int4TilePackedTo4dTensor

    quantised: torch.Tensor = Int4TilePackedTo4dTensor.from_hp(weight, [1, GROUP])
    return quantised


def _fp8(weight: torch.Tensor) -> torch.Tensor:
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, PerRow
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    common: dict[str, Any] = {
        "granularity": PerRow(),
        "hp_value_lb": LEAST_PEAK,
        "mm_config": Float8MMConfig(use_fast_accum=True),
        "kernel_preference": KernelPreference.TORCH,
    }
    activations = QuantizeTensorToFloat8Kwargs(**common)
    quantised: torch.Tensor = Float8Tensor.from_hp(weight, act_quant_kwargs=activations, **common)
    return quantised


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor subclass is made of."""
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    return [getattr(weight, name) for name in names]
