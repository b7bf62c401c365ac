"""Linear layers with quantised weights, with the compiled kernels and in plain PyTorch.

On a CPU weights and activations are quantised in groups of 32. Their products are exact integers,
so a row of the output has the same bits in any batch. `NativeLinear` uses the compiled kernels.
`TorchLinear` computes the same in PyTorch, slowly. `WeightOnlyLinear` is for other devices.
"""

import ctypes

import torch
import torch.nn.functional as F

from stonechat_models.backends.native.bindings import PANEL, Kind, Library, MatrixStruct
from stonechat_models.backends.quantization.groupwise import (
    Bits,
    GroupwiseWeight,
    pad_to_groups,
    product,
    quantise,
)
from stonechat_models.backends.quantization.linear import QuantizedLinear

KINDS = {"int8": Kind.Q8_0, "int4": Kind.Q4_1}
SOURCES = {
    torch.bfloat16: Kind.BF16,
    torch.float16: Kind.F16,
    torch.float32: Kind.F32,
}
ALIGNMENT = 64


class LinearTeam:
    """The compiled kernels and the threads that run them, shared by a model's layers.

    It runs one call at a time: only the thread that runs the model may use it.
    """

    def __init__(self, library: Library, threads: int) -> None:
        self.library = library
        self.pool = library.pool_create(threads)
        self.handle = library.linear_team_create(self.pool)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.linear_team_destroy(self.handle)
            self.library.pool_destroy(self.pool)
            self.handle = 0


class NativeLinear(QuantizedLinear):
    """A layer whose weights are packed for the compiled kernels (`csrc/matrix.h`)."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, bits: Bits, team: LinearTeam
    ) -> None:
        super().__init__(weight.shape)
        self._team = team
        self._packed = self._pack(weight.detach(), KINDS[bits])
        self._bias = None
        if bias is not None:
            self._bias = F.pad(bias.detach().float(), (0, -bias.numel() % PANEL))
        self._matrix = MatrixStruct(
            KINDS[bits],
            self.out_features,
            self._k,
            self._packed.data_ptr() + self._offset,
            None if self._bias is None else self._bias.data_ptr(),
        )

    def _pack(self, weight: torch.Tensor, kind: Kind) -> torch.Tensor:
        if weight.dtype not in SOURCES:
            weight = weight.float()
        rows = pad_to_groups(weight).contiguous()
        n, self._k = rows.shape
        library = self._team.library
        size = library.packed_bytes(kind, n, self._k) + ALIGNMENT
        memory = torch.empty(size, dtype=torch.uint8, device=weight.device)
        self._offset = -memory.data_ptr() % ALIGNMENT
        if weight.is_meta:
            return memory
        index = torch.arange(n, dtype=torch.int32)
        library.pack(
            *(self._team.pool, kind, SOURCES[rows.dtype], n, self._k),
            *(rows.data_ptr(), rows.stride(0) * rows.element_size(), index.data_ptr()),
            memory.data_ptr() + self._offset,
        )
        return memory

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_groups(x.float()).contiguous()
        output = torch.empty(x.shape[0], self.out_features)
        matrix = ctypes.byref(self._matrix)
        self._team.library.linear(
            self._team.handle, matrix, x.data_ptr(), x.shape[0], output.data_ptr()
        )
        return output


class TorchLinear(QuantizedLinear):
    """Computes as `NativeLinear` does, in PyTorch.

    It is for use without a compiler, and the kernels are tested with it.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: Bits) -> None:
        super().__init__(weight.shape)
        self._quantised: GroupwiseWeight = quantise(pad_to_groups(weight.detach()), bits)
        self._bias = None if bias is None else bias.detach().float()

    @property
    def num_bytes(self) -> int:
        return self._quantised.num_bytes + super().num_bytes

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        return product(pad_to_groups(x.float()), self._quantised, self._bias)


class WeightOnlyLinear(QuantizedLinear):
    """int8 weights with one scale per output channel, multiplied in their original dtype.

    This saves memory, not time: each call first dequantises the weight to that dtype.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(weight.shape)
        values = weight.detach().float()
        self._scales = (values.abs().amax(dim=-1, keepdim=True) / 127.0).to(weight.dtype)
        scales = self._scales.float()
        quantised = torch.where(scales > 0, values / scales, 0.0).round().clamp(-127, 127)
        self._quantised = quantised.to(torch.int8)
        self._bias = None if bias is None else bias.detach()

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x may be on another device, because a device map's hooks do not know this layer."""
        weight = self._quantised * self._scales  # one operator: int8 times float gives float
        return F.linear(x.to(weight.device, weight.dtype), weight, self._bias)
