"""Numbers keep their values and dtypes when they are copied to a device."""

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
    tensor = to_device(numbers, torch.device(device), dtype)
    assert tensor.device.type == device
    expected = torch.tensor(numbers, dtype=dtype)
    assert tensor.dtype == expected.dtype
    assert torch.equal(tensor.cpu(), expected)


def test_it_copies():
    numbers = np.zeros(3, dtype=np.int64)
    tensor = to_device(numbers, torch.device("cpu"))
    numbers[0] = 7
    assert tensor.tolist() == [0, 0, 0]
