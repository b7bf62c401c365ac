"""The facts about this machine, compared with other sources."""

import os
import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import psutil
import pytest
import torch
import torch.utils.benchmark

from stonechat_models.backends.native import bindings
from stonechat_models.diagnostics import machine as machine_module
from stonechat_models.diagnostics.bandwidth import measure_bandwidth
from stonechat_models.diagnostics.machine import Gpu, inspect_machine
from stonechat_models.errors import UnsupportedModelError


def test_the_facts_are_those_of_the_system() -> None:
    machine = inspect_machine(lambda line: None)
    assert machine.usable_cpus == len(os.sched_getaffinity(0))
    assert 1 <= machine.num_cores <= machine.usable_cpus <= machine.num_cpus
    assert machine.total_memory <= psutil.virtual_memory().total
    assert 0 < machine.free_memory <= machine.total_memory
    assert len(machine.gpus) >= torch.cuda.device_count()
    assert machine.torch_version == torch.__version__
    assert (machine.native_isa is None) != (machine.native_refusal is None)


def test_bandwidth_is_of_the_order_of_a_plain_copy() -> None:
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    timer = torch.utils.benchmark.Timer("target.copy_(source)", globals=locals(), num_threads=1)
    copy_bandwidth = 2 * source.nbytes / timer.timeit(5).median
    assert copy_bandwidth / 6 < measure_bandwidth("cpu", num_threads=1) < copy_bandwidth * 6


def test_an_absent_device_raises() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        measure_bandwidth("cuda:99")


def test_gpus_are_described_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 << 30

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 << 30)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1 << 30)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    gpus = inspect_machine(lambda line: None).gpus
    assert [replace(gpu, support=None) for gpu in gpus] == [
        Gpu("GPU 0", "cuda", 80 << 30, 70 << 30, "9.0"),
        Gpu("GPU 1", "cuda", 80 << 30, 70 << 30, "9.1"),
        Gpu("Apple GPU", "mps", 16 << 30, 15 << 30, ""),
    ]
    assert [gpu.support and gpu.support.dtype for gpu in gpus] == ["bfloat16", "bfloat16", None]


def test_a_processor_is_described_by_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    read_text = Path.read_text

    def read(path: Path, *arguments: str, **options: str) -> str:
        is_cpuinfo = str(path) == "/proc/cpuinfo"
        return read_text(cpuinfo if is_cpuinfo else path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(platform, "processor", lambda: "other")
    monkeypatch.setattr(machine_module, "_native", lambda progress: (None, None))
    cpuinfo.write_text("model name\t: Fast: 9\nflags\t\t: fpu avx2 avx512_vnni\n")
    machine = inspect_machine(lambda line: None)
    assert (machine.cpu, machine.instruction_sets) == ("Fast: 9", ("avx2", "avx512_vnni"))
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimddp sve i8mm\n")
    machine = inspect_machine(lambda line: None)
    assert (machine.cpu, machine.instruction_sets) == ("other", ("asimddp", "i8mm", "sve"))
    cpuinfo.unlink()
    machine = inspect_machine(lambda line: None)
    assert (machine.cpu, machine.instruction_sets) == ("other", ())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(progress: object) -> None:
        raise UnsupportedModelError("no compiler")

    def version_of(name: str) -> str:
        if name == "uvloop":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(bindings, "load_library", refuse)
    monkeypatch.setattr("stonechat_models.diagnostics.machine.version", version_of)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    machine = inspect_machine(lambda line: None)
    assert (machine.native_isa, machine.native_refusal) == (None, "no compiler")
    assert machine.package_versions["uvloop"] == ""
    assert machine.package_versions["transformers"] == "1.2"
    assert machine.cache_free_bytes > 0
    assert not machine.cache_folder.exists()
