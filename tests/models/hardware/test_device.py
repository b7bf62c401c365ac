"""The choice of device and dtype, and memory and cores within the limits of a control group."""

from pathlib import Path

import pytest
import torch

from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware import device
from stonechat_models.hardware.device import choose_device, choose_dtype, free_memory, total_memory

CPU = torch.device("cpu")


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cuda", 0)
    elif not torch.backends.mps.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(ModelLoadError, match="cuda"):
            choose_device("cuda")
    with pytest.raises(ModelLoadError, match="is not a device"):
        choose_device("gpu")
    with pytest.raises(ModelLoadError, match="no device cuda:99"):
        choose_device("cuda:99")


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_dtypes_on_a_cpu(has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: has_bfloat16)
    expected = torch.bfloat16 if has_bfloat16 else torch.float32
    assert choose_dtype("auto", "bfloat16", CPU) is expected
    assert choose_dtype("auto", "float16", CPU) is torch.float32
    assert choose_dtype("auto", "", CPU) is torch.float32
    assert choose_dtype("float16", "bfloat16", CPU) is torch.float16
    with pytest.raises(ModelLoadError, match="is not a dtype"):
        choose_dtype("int8", "", CPU)


def test_dtypes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for capability, expected in (((7, 5), torch.float16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert choose_dtype("auto", "bfloat16", gpu) is expected
        assert choose_dtype("auto", "float32", gpu) is expected
        assert choose_dtype("auto", "float16", gpu) is torch.float16


def test_free_memory_is_at_most_the_total() -> None:
    assert 0 < free_memory(CPU) <= total_memory(CPU)


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_limits_memory(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
        )
    )
    (tmp_path / names[0]).write_text(f"{1 << 20}\n")
    (tmp_path / names[1]).write_text(f"{600_000}\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    monkeypatch.setattr(device, "_cgroup_folders", lambda: [tmp_path])
    assert total_memory(CPU) == 1 << 20
    assert free_memory(CPU) == (1 << 20) - 500_000
    (tmp_path / names[0]).write_text("max\n")
    assert total_memory(CPU) > 1 << 20


def test_cores_are_limited_by_the_affinity_and_the_quota(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(device, "_cgroup_folders", lambda controller: [tmp_path])
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: range(1000, 1008), raising=False)
    assert device.usable_cores() == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert device.usable_cores() == 8
    (tmp_path / "cpu.max").write_text("450000 100000\n")
    assert device.usable_cores() == 4
