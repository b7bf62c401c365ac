"""Linear layers on a CUDA device with weights that torchao quantises and multiplies.

- int8: a scale an output channel. Each call writes the weight out in the dtype of the activations.
- int4: groups of 32 with a scale and an offset, for PyTorch's kernel that reads the codes. The
  weight is filled up to a multiple of 1024 inputs.

Written for torchao 0.18; see docs/gpu.md for what has been run.
"""

import torch
import torch.nn.functional as F

from stonechat_models.backends.quantization.groupwise import GROUP, Bits
from stonechat_models.backends.quantization.linear import QuantizedLinear


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
    weight: torch.Tensor, bias: torch.Tensor | None, bits: Bits
) -> TorchaoLinear | None:
    """Quantise weight[n, k]; None for a shape that the kernels cannot take.

    int4 is for bfloat16 weights.
    """
    if bits == "int4" and weight.shape[1] % GROUP:
        return None
    weight = weight.detach().contiguous()
    return TorchaoLinear(_int8(weight) if bits == "int8" else _int4(weight), bias)


def _int8(weight: torch.Tensor) -> torch.Tensor:
    from torchao.quantization import Int8Tensor, PerRow

    quantised: torch.Tensor = Int8Tensor.from_hp(weight, granularity=PerRow())
    return quantised


def _int4(weight: torch.Tensor) -> torch.Tensor:
    from torchao.quantization import Int4TilePackedTo4dTensor

    quantised: torch.Tensor = Int4TilePackedTo4dTensor.from_hp(weight, [1, GROUP])
    return quantised


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor subclass is made of."""
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    return [getattr(weight, name) for name in names]
