"""Linear layers with float8_e4m3fn weights, multiplied by activations in float8.

Weights have one scale per output channel. Activations have one scale per row, which each call
computes. The product of float8 numbers is PyTorch's. It needs a CUDA device of compute capability
8.9 or more; it also runs on CPUs, where the tests of this file use it.
"""

import torch

from stonechat_models.backends.quantization.device_support import FP8, FP8_MAX, LEAST_PEAK
from stonechat_models.backends.quantization.linear import QuantizedLinear

MULTIPLE = 16
"""Both sizes of a weight must be multiples of this for the product."""


class Fp8Linear(QuantizedLinear):
    """A linear layer for bfloat16 activations."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape)
        self._quantised, self._scales = quantise_rows(weight.detach())
        self._bias = None if bias is None else bias.detach().to(torch.bfloat16)
        self._quantise_rows = quantise_rows
        if weight.device.type == "cuda":
            from stonechat_models.backends.quantization.fp8_triton import fp8_rows

            self._quantise_rows = fp8_rows

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x may be on another device, because a device map's hooks do not know this layer."""
        quantised, scales = self._quantise_rows(x.to(self._quantised.device))
        product: torch.Tensor = torch._scaled_mm(
            quantised,
            self._quantised.T,
            scale_a=scales,
            scale_b=self._scales.T,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast_sums(),
        )
        return product


def fp8_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Fp8Linear | None:
    """Quantise weight[n, k]; return None for a shape that the product does not support."""
    if any(size % MULTIPLE for size in weight.shape):
        return None
    return Fp8Linear(weight, bias)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise x[R, K] to float8_e4m3fn[R, K] and scales float32[R, 1]; x ~ values * scales."""
    values = x.float()
    scales = values.abs().amax(dim=1, keepdim=True).clamp(min=LEAST_PEAK) / FP8_MAX
    return (values / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def fast_sums() -> bool:
    """True if sums may use the tensor cores' precision. CUDA 12.9 then refuses some shapes."""
    return not (torch.version.cuda or "").startswith("12.9")
