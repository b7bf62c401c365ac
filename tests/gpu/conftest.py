"""Tests on a CUDA device of compute capability 8.0 or more. Without one they are skipped.

They need no network and no model. For a first run, which compiles few kernels:

    python -m pytest -W default -n 10 -m "not slow_compile and not alone" tests/gpu
    python -m pytest -W default -m alone tests/gpu

With `-W default` a library's warning about the device fails no test. The mark `alone` is for tests
that read how much of the device's memory is free. Those with the mark `slow_compile` compile the
attention kernels for float32 and float16, which takes minutes.
"""

from collections.abc import Iterator

import pytest
import torch

from stonechat_models.backends.transformers.attention.choose import why_no_triton


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow_compile: compiles kernels for minutes on a device")
    config.addinivalue_line("markers", "alone: no other process may use the device meanwhile")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if "tests/gpu" in item.path.as_posix()]
    reason = "there is no CUDA device"
    if torch.cuda.is_available():
        reason = why_no_triton(torch.device("cuda", 0)) or ""
    for item in gpu_items:
        item.add_marker(pytest.mark.gpu)
        item.add_marker(pytest.mark.filterwarnings("ignore:Synchronization debug mode"))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(scope="session", autouse=True)
def two_tiles() -> Iterator[None]:
    """Engines choose between two tiles of each kernel only, since all take long to compile.

    Tests of the kernels themselves try all.
    """
    if not torch.cuda.is_available():
        yield
        return
    from stonechat_models.backends.transformers.attention import tile_choice
    from stonechat_models.backends.transformers.fused import product_choice

    candidates = tile_choice.candidates
    with pytest.MonkeyPatch.context() as patch:
        # The second of each fetches weights early.
        patch.setattr(product_choice, "TILES", product_choice.TILES[::4])
        patch.setattr(product_choice, "SOME_TILES", product_choice.SOME_TILES[:2])
        patch.setattr(tile_choice, "candidates", lambda *sizes: candidates(*sizes)[:2])
        yield
