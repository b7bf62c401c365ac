"""Tests on a CUDA device of compute capability 8.0 or more. Without one they are skipped."""

import pytest
import torch

from stonechat_models.backends.transformers.attention.choose import why_no_triton


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if "tests/gpu" in item.path.as_posix()]
    reason = "there is no CUDA device"
    if torch.cuda.is_available():
        reason = why_no_triton(torch.device("cuda", 0)) or ""
    for item in gpu_items:
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)
