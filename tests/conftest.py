"""Shared fixtures. Nothing here or in a test reaches a model hub: it is switched off first."""

import os
from collections.abc import Callable, Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():  # read when a kernel's module is imported
    os.environ["TRITON_INTERPRET"] = "1"

from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors only: more threads would be slower, and float sums depend on their number."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal past pytest's capture, for what takes long."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n[{line}]", flush=True)

    return write


@pytest.fixture(scope="session")
def default_model_files(say: Callable[[str], None]) -> ModelFiles:
    """The default model, fetched by the project's own code the first time."""
    return resolve_model(EngineConfig(model=""), say)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For a test that changes the number of torch's threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
