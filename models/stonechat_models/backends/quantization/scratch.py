"""Memory in which parts of quantised weights are dequantised."""

import torch

SCRATCH_ELEMENTS = 1 << 26
"""How many weights are dequantised at a time."""


class Scratch:
    """Memory for dequantised weights, which all layers of a model share. It never moves."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._memory = torch.empty(0, device=device, dtype=dtype)

    def reserve(self, num_elements: int) -> None:
        """Make room for so many, up to `SCRATCH_ELEMENTS`. Not after a graph was captured."""
        num_elements = min(num_elements, SCRATCH_ELEMENTS)
        if num_elements > self._memory.numel():
            self._memory = self._memory.new_empty(num_elements)

    @property
    def num_bytes(self) -> int:
        return self._memory.nbytes

    def rows(self, k: int) -> torch.Tensor:
        """All of it as rows [n, k]."""
        n = self._memory.numel() // k
        return self._memory[: n * k].view(n, k)
