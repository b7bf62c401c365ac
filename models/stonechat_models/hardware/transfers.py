"""Copies numbers to a device and back, without waiting for the device's other work."""

from collections.abc import Sequence

import numpy as np
import torch

Numbers = Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def to_device(
    numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Return `torch.tensor(numbers)` on `device`.

    A plain copy to a CUDA device waits until all work queued there is done, so the host cannot
    queue more work meanwhile. A copy from page-locked memory does not wait.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    if isinstance(numbers, np.ndarray):  # PyTorch refuses to make these in page-locked memory
        host = torch.tensor(numbers, dtype=dtype).pin_memory()
    else:
        host = torch.tensor(numbers, dtype=dtype, pin_memory=True)
    return host.to(device, non_blocking=True)


class HostCopies:
    """Copies CUDA tensors to the host. The constructor starts the copies; `read` waits for them."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._copies = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
            for t in tensors
        ]
        self._event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(tensors[0].device))

    def read(self) -> list[torch.Tensor]:
        """Wait for the copies, but not for work that was queued after them."""
        self._event.synchronize()
        return self._copies
