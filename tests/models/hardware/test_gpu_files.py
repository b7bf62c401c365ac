"""Whether a GPU can be used, told without PyTorch."""

import pytest

from stonechat_models import EngineConfig
from stonechat_models.diagnostics import memory_plan
from stonechat_models.hardware import gpu_files
from stonechat_models.hardware.gpu_files import sees_gpu
from stonechat_models.runtime import async_engine, build


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """A stand-in for /dev with an NVIDIA GPU, and a PyTorch that can use it."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(gpu_files, "DEVICES", tmp_path)
    monkeypatch.setattr(gpu_files.metadata, "version", lambda _: "2.11.0+cu130")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_a_gpu_is_seen_by_its_device(devices):
    assert sees_gpu()
    (devices / "nvidia0").rename(devices / "nvidiactl")
    assert not sees_gpu()
    (devices / "dxg").touch()
    assert sees_gpu()


@pytest.mark.parametrize(("visible", "is_seen"), [("", False), ("-1", False), ("0", True)])
def test_a_hidden_gpu_is_not_seen(visible, is_seen, devices, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert sees_gpu() is is_seen


def test_a_pytorch_for_cpus_sees_no_gpu(devices, monkeypatch):
    monkeypatch.setattr(gpu_files.metadata, "version", lambda _: "2.11.0+cpu")
    assert not sees_gpu()


def test_an_engine_on_a_gpu_gets_a_process_before_pytorch_is_asked(devices, monkeypatch):
    def ask(_):
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr("stonechat_models.hardware.device.choose_device", ask)
    for device in ("auto", "cuda", "cuda:1"):
        assert async_engine._wants_process(EngineConfig(model="m", device=device))
    assert not async_engine._wants_process(
        EngineConfig(model="m", device="cuda", engine_process=False)
    )
    assert not async_engine._wants_process(EngineConfig(model="m", device="cpu"))
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        async_engine._wants_process(EngineConfig(model="m", device="mps"))
    (devices / "nvidia0").unlink()
    assert not async_engine._wants_process(EngineConfig(model="m", device="auto"))
    (devices / "kfd").touch()
    with pytest.raises(AssertionError, match="PyTorch was asked"):
        async_engine._wants_process(EngineConfig(model="m", device="auto"))


@pytest.mark.parametrize(("device", "looked_for"), [("auto", "cpu"), ("cuda", "cuda")])
def test_the_native_backend_chooses_the_cpu_beside_a_gpu(device, looked_for, devices, monkeypatch):
    """A device that is named stays, and the backend refuses it."""

    def look_for(name):
        raise LookupError(name)

    monkeypatch.setattr(build, "find_device", look_for)
    monkeypatch.setattr(memory_plan, "choose_device", look_for)
    config = EngineConfig(model="m", backend="native", device=device)
    for function in (build.build_engine, memory_plan.survey_model):
        with pytest.raises(LookupError, match=f"^{looked_for}$"):
            function(config, lambda line: None)
    assert async_engine._wants_process(config) is (looked_for == "cuda")
