"""The library is compiled once. If it cannot be compiled, there is a reason."""

import shutil
import subprocess
from pathlib import Path

import pytest

from stonechat_models.backends.native import compile as native_compile
from stonechat_models.backends.native import supports
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from tests.models.backends.native.emulated import ARM, COMPILER, skip_without_emulator
from tests.models.backends.native.native_helpers import ARCHITECTURES, DAILY, make_model
from tests.nightly import nightly

STRICT = ("-Werror", "-Wconversion", "-Wshadow", "-Wold-style-cast")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_without_a_compiler_there_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = make_model("llama", tmp_path / "model")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = supports(files, EngineConfig(model="x"))
    assert reason is not None
    assert "no C++ compiler" in reason


def test_a_compiler_that_fails_is_a_reason(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UnsupportedModelError, match="compiler fails"):
        native_compile.build_library(lambda line: None)
    assert not list(cache_folder.glob("**/*.so"))


def test_the_reason_is_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning before it, or a name with the word, is not taken for it."""
    (tmp_path / "api.cpp").write_text(
        'int error_of() { int unused; return 1; }\n#error "this is the error"\n'
    )
    monkeypatch.setattr(native_compile, "SOURCES", tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"error: .*this is the error"):
        native_compile.build_library(lambda line: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "is_optimised"),
    [
        *((name, False) for name in DAILY),
        *(
            pytest.param(name, False, marks=pytest.mark.nightly)
            for name in ARCHITECTURES
            if name not in DAILY
        ),
        pytest.param("native", True, marks=pytest.mark.nightly),
    ],
)
def test_the_sources_cause_no_warning(
    architecture: str, is_optimised: bool, tmp_path: Path
) -> None:
    """Warnings that need an optimised build are looked for at night, on this processor."""
    compiler = native_compile.find_compiler()
    assert compiler is not None
    flags = [*native_compile.FLAGS, *STRICT, f"-march={architecture}"]
    if is_optimised:  # a bug in the AVX-512 header of GCC 12: GCC bug 105593
        flags += ["-Wno-unknown-warning-option", "-Wno-error=maybe-uninitialized"]
        flags += ["-Wno-error=uninitialized"]
    else:
        flags += ["-fsyntax-only"]
    command = [compiler, *flags, str(native_compile.SOURCES / "api.cpp"), "-o", str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert (result.returncode, errors) == (0, [])


@pytest.mark.parametrize(
    ("architecture", "machine", "instruction_sets", "flags"),
    [
        ("native", "x86_64", {"avx2"}, ("-march=native",)),
        ("native", "aarch64", {"asimddp"}, ("-mcpu=native",)),
        ("native", "aarch64", {"sve", "sve128"}, ("-mcpu=native",)),
        ("native", "aarch64", {"sve", "sve256"}, ("-mcpu=native", "-msve-vector-bits=256")),
        ("native", "arm64", set(), ("-mcpu=native",)),
        ("armv8-a", "aarch64", {"sve", "sve256"}, ("-march=armv8-a",)),
    ],
)
def test_the_flags_of_the_processor(
    architecture: str, machine: str, instruction_sets: set[str], flags: tuple[str, ...]
) -> None:
    assert native_compile.target_flags(architecture, machine, instruction_sets) == flags


DAILY_ARM = ("sve256",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "level", [*DAILY_ARM, *nightly(*(level for level in ARM if level not in DAILY_ARM))]
)
def test_the_sources_cause_no_warning_on_arm(level: str, tmp_path: Path) -> None:
    skip_without_emulator()
    flags = [*native_compile.FLAGS, *STRICT, *ARM[level], "-fsyntax-only"]
    command = [COMPILER, *flags, str(native_compile.SOURCES / "api.cpp"), "-o", str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_cache_that_cannot_be_written_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, files = make_model("llama", tmp_path / "model")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reason = supports(files, EngineConfig(model="x"))
    assert reason is not None
    assert "cache" in reason


def test_the_library_is_compiled_once_per_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "api.cpp").write_text('extern "C" int answer() { return 1; }\n')
    monkeypatch.setattr(native_compile, "SOURCES", sources)
    lines: list[str] = []
    first = native_compile.build_library(lines.append)
    assert native_compile.build_library(lines.append) == first
    assert len(lines) == 1
    (sources / "api.cpp").write_text('extern "C" int answer() { return 2; }\n')
    second = native_compile.build_library(lines.append)
    assert second != first
    assert len(lines) == 2
    shutil.rmtree(first.parent)
    assert second.is_file()
