"""The choice of device and dtype, and memory and cores within the limits of a control group."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from stonechat_models.errors import ModelLoadError
from stonechat_models.hardware import device
from stonechat_models.hardware.device import (
    as_current_device,
    choose_device,
    choose_dtype,
    cpu_quota,
    free_memory,
    total_memory,
)

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


def test_only_a_cuda_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda d: nullcontext(entered.append(d)))
    second = torch.device("cuda", 1)
    with as_current_device(CPU), as_current_device(second):
        assert entered == [second]


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


@pytest.fixture
def fake_files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Text of files by path. Files of the system that are not listed do not exist."""
    files: dict[str, str] = {}
    read_text = Path.read_text

    def read(path: Path) -> str:
        if str(path) in files:
            return files[str(path)]
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", read)
    return files


def use_cgroups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CGROUP_V2", folder / "unified")
    monkeypatch.setattr(device, "CGROUP_V1", folder / "v1" / "memory")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_tightest_group_of_either_version_counts(
    fake_files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cgroups(tmp_path, monkeypatch)
    fake_files["/proc/self/cgroup"] = "7:memory:/box\n5:cpu,cpuacct:/box\n0::/user/app\n"
    write(tmp_path / "unified" / "user" / "app" / "memory.max", "max\n")
    write(tmp_path / "unified" / "user" / "memory.max", f"{6 << 20}\n")
    write(tmp_path / "unified" / "user" / "memory.current", f"{1 << 20}\n")
    write(tmp_path / "v1" / "memory" / "box" / "memory.limit_in_bytes", f"{8 << 20}\n")
    write(tmp_path / "v1" / "memory" / "box" / "memory.usage_in_bytes", f"{7 << 20}\n")
    stats = f"total_inactive_file {4 << 20}\n"
    write(tmp_path / "v1" / "memory" / "box" / "memory.stat", stats)
    fake_files["/proc/meminfo"] = "MemTotal: 64000 kB\nMemAvailable: 32000 kB\n"
    assert total_memory(CPU) == 6 << 20
    assert free_memory(CPU) == 5 << 20
    write(tmp_path / "unified" / "user" / "app" / "cpu.max", "max 100000\n")
    write(tmp_path / "unified" / "cpu.max", "300000 100000\n")
    assert cpu_quota() == 3.0
    write(tmp_path / "v1" / "cpu" / "box" / "cpu.cfs_quota_us", "150000\n")
    write(tmp_path / "v1" / "cpu" / "box" / "cpu.cfs_period_us", "100000\n")
    assert cpu_quota() == 1.5
    write(tmp_path / "v1" / "cpu" / "box" / "cpu.cfs_quota_us", "-1\n")
    assert cpu_quota() == 3.0


def test_memory_without_limits_is_that_of_the_machine(
    fake_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cpu_quota() is None
    fake_files["/proc/meminfo"] = "MemTotal:  64000 kB\nMemFree: 16000 kB\nHugePages: none\n"
    assert (total_memory(CPU), free_memory(CPU)) == (64000 * 1024, 16000 * 1024)
    fake_files["/proc/meminfo"] += "MemAvailable: 32000 kB\n"
    assert free_memory(CPU) == 32000 * 1024
    del fake_files["/proc/meminfo"]
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(device.os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(device.sys, "platform", "freebsd")
    assert (total_memory(CPU), free_memory(CPU)) == (4_096_000, 4_096_000)
    monkeypatch.setattr(device.sys, "platform", "darwin")
    assert (total_memory(CPU), free_memory(CPU)) == (4_096_000, 2_048_000)


def test_two_threads_of_a_core_are_one_core(
    fake_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 9}, raising=False)
    for cpu in range(4):
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        fake_files[path] = f"{cpu % 2},{cpu % 2 + 2}\n"
    assert device.usable_cores() == 3
    monkeypatch.delattr(device.os, "sched_getaffinity")
    monkeypatch.setattr(device.os, "cpu_count", lambda: 2)
    assert device.usable_cores() == 2


def test_memory_of_gpus_is_what_torch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, mps = torch.device("cuda", 0), torch.device("mps")

    class Properties:
        total_memory = 80 << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 << 30, 80 << 30))
    assert (total_memory(gpu), free_memory(gpu)) == (80 << 30, 70 << 30)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5 << 30)
    assert (total_memory(mps), free_memory(mps)) == (16 << 30, 11 << 30)


def test_the_best_device_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    first = torch.device("cuda", 0)
    assert choose_device("auto") == choose_device("cuda") == choose_device("cuda:0") == first
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ModelLoadError, match=r"no device cuda:2 \(CUDA devices: 2\)"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ModelLoadError, match="no MPS device"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_a_cpu_with_either_instruction_has_bfloat16(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: False, raising=False)
    assert not device.cpu_has_bfloat16()
    monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert device.cpu_has_bfloat16()
