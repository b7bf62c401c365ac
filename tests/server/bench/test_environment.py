"""What a benchmark says of its machine, and what it says where the system tells nothing."""

import os
import platform
import subprocess
from pathlib import Path

import pytest

from stonechat_models import __version__
from stonechat_server.bench import environment


def fake_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_it_describes_this_machine() -> None:
    described = environment.describe_environment()
    assert platform.system() in described.platform
    assert described.python == platform.python_version()
    assert described.stonechat == __version__
    assert 1 <= described.usable_cpus <= described.num_cpus
    assert described.cpu


def test_memory_is_pages_times_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert environment.memory_bytes() == 4_096_000

    def unknown(_: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert environment.memory_bytes() == 0
    monkeypatch.delattr(os, "sysconf")
    assert environment.memory_bytes() == 0


def test_gpus_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, "printf 'NVIDIA H100\\n\\n NVIDIA L4 \\n'", monkeypatch)
    assert environment.gpu_names() == ["NVIDIA H100", "NVIDIA L4"]


def test_there_are_no_gpus_where_nvidia_smi_is_missing_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path, "echo 'NVIDIA H100'; exit 9", monkeypatch)
    assert environment.gpu_names() == []

    def too_slow(command: list[str], **options: object) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(subprocess, "run", too_slow)
    assert environment.gpu_names() == []
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert environment.gpu_names() == []
