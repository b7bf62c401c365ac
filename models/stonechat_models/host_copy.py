"""Numbers from the host to a device, without waiting for what the device is doing."""

from collections.abc import Sequence

import numpy as np
import torch

Numbers = Sequence[int] | Sequence[float] | Sequence[Sequence[float]] | np.ndarray


def to_device(
    numbers: Numbers, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`torch.tensor(numbers)` on `device`.

    A plain copy to a CUDA device waits until all that was queued there is done, and so keeps the
    host from queueing what comes next; one from page-locked memory does not.
    """
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    host = torch.tensor(numbers, dtype=dtype, pin_memory=True)
    return host.to(device, non_blocking=True)
