"""Numbers keep their values and dtypes on the way to a device."""

import numpy as np
import pytest
import torch

from stonechat_models.hardware.transfers import to_device

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([1, 2**40, -3], torch.int64),
        ([0.5, 1e-30], torch.float64),
        ([[1.0, 2.0], [3.0, 4.0]], torch.float64),
        (np.arange(6, dtype=np.int32).reshape(2, 3), None),
        ([], torch.int64),
    ],
    ids=str,
)
def test_to_device(numbers, dtype, device):
    moved = to_device(numbers, torch.device(device), dtype)
    assert moved.device.type == device
    expected = torch.tensor(numbers, dtype=dtype)
    assert moved.dtype == expected.dtype
    assert torch.equal(moved.cpu(), expected)


def test_it_copies():
    numbers = np.zeros(3, dtype=np.int64)
    moved = to_device(numbers, torch.device("cpu"))
    numbers[0] = 7
    assert moved.tolist() == [0, 0, 0]
