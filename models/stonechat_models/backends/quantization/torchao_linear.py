"""Linear layers on a CUDA device with weights that torchao quantises and multiplies.

- int8: one scale per output channel. Each call casts the int8 values to the activations' dtype.
- int4: a scale and an offset per group of 32. PyTorch's kernel reads the quantised values as they
  are. The inputs of the weight are padded to a multiple of 1024.

The code is written for torchao 0.18; docs/gpu.md says what has been run.
"""

import torch
import torch.nn.functional as F

from stonechat_models.backends.quantization.groupwise import GROUP, Bits
from stonechat_models.backends.quantization.linear import QuantizedLinear


class TorchaoLinear(QuantizedLinear):
    """Multiplies by a torchao tensor, which holds quantised values and scales as inner tensors."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape)
        self._weight = weight
        self._bias = None if bias is None else bias.detach()

    @property
    def num_bytes(self) -> int:
        names, _ = self._weight.__tensor_flatten__()  # type: ignore[attr-defined]
        tensors = [getattr(self._weight, name) for name in names]
        return sum(t.nbytes for t in (*tensors, self._bias) if t is not None)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x may be on another device, because a device map's hooks do not know this layer."""
        x = x.to(self._weight.device, self._weight.dtype).contiguous()
        return F.linear(x, self._weight, self._bias)


def torchao_linear(
    weight: torch.Tensor, bias: torch.Tensor | None, bits: Bits
) -> TorchaoLinear | None:
    """Quantise weight[n, k]; return None for a shape that the kernels do not support.

    int4 needs bfloat16 weights.
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
