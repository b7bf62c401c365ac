"""The driver of a CUDA device is started by its own library, before PyTorch is there."""

import ctypes
from types import SimpleNamespace

import pytest

from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware import cuda_start
from stonechat_models.hardware.cuda_start import start_driver
from stonechat_models.runtime import build, worker_main


@pytest.fixture
def calls(monkeypatch):
    """The calls of a stand-in for the driver's library."""
    calls = []
    statuses = {}

    def function(name):
        def call(*arguments):
            calls.append((name, arguments[-1]))
            return statuses.get(name, 0)

        return call

    names = ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain")
    library = SimpleNamespace(**{name: function(name) for name in names})
    monkeypatch.setattr(cuda_start, "sees_gpu", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    return SimpleNamespace(made=calls, statuses=statuses)


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_context_of_the_device_is_created(device, index, calls):
    start_driver(device).join()
    assert [name for name, _ in calls.made] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert calls.made[1][1] == index


def test_a_driver_that_fails_is_left_to_pytorch(calls, monkeypatch):
    calls.statuses["cuInit"] = 100  # no device
    start_driver("cuda").join()
    assert [name for name, _ in calls.made] == ["cuInit"]

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    start_driver("cuda").join()


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda:x", "nonsense"])
def test_other_devices_need_no_driver(device, calls):
    assert start_driver(device) is None


def test_without_a_gpu_there_is_nothing_to_start(calls, monkeypatch):
    monkeypatch.setattr(cuda_start, "sees_gpu", lambda: False)
    assert start_driver("auto") is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, ["auto"]), ({"backend": "native"}, ["cpu"]), ({"tensor_parallel": 2}, [])],
    ids=["auto", "native", "ranks"],
)
def test_an_engine_process_starts_it_for_itself(settings, expected, monkeypatch):
    """Compiled kernels run on the CPU, and other ranks have processes of their own."""
    started = []
    monkeypatch.setattr(worker_main, "start_driver", started.append)

    def refuse(*_, **__):
        raise ModelLoadError("no model")

    monkeypatch.setattr(build, "build_engine", refuse)
    pipe = SimpleNamespace(send=lambda message: None)
    assert worker_main._load(EngineConfig(model="x", **settings), pipe) is None
    assert started == expected
