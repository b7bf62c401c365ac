"""Shared fixtures. No fixture and no test reaches a model hub: offline mode is set first."""

import atexit
import gc
import os
import sys
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():  # Triton reads it when a kernel's module is imported
    os.environ["TRITON_INTERPRET"] = "1"

from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig

# `small` makes the same examples in every run. `--hypothesis-profile full` looks for new ones.
settings.register_profile("small", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("small")


def pytest_collection() -> None:
    """Collect no garbage among millions of new objects that stay."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slow tests, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keep all that was imported and collected out of later garbage collections.

    These look for garbage less often than by default, since most tests make none that is large.
    """
    if "triton.runtime.interpreter" in sys.modules:
        from tests import triton_interpreter

        triton_interpreter.speed_up()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


def pytest_unconfigure() -> None:
    """Write no errors while the process ends: Triton takes the kept objects for lost ones."""
    if "triton" in sys.modules:
        atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests use small tensors: more threads are slower, and float sums depend on their number.

    Some tests, and libraries that they import, set the number for the whole process. On a machine
    that is busy with other tests, small operations then take a hundred times as long.
    """
    num_threads = int(os.environ["OMP_NUM_THREADS"])
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that prints a line in spite of pytest's capture, before slow work."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n[{line}]", flush=True)

    return write


@pytest.fixture(scope="session")
def default_model_files(say: Callable[[str], None]) -> ModelFiles:
    """The default model. The project's own code fetches it the first time."""
    return resolve_model(EngineConfig(model=""), say)
