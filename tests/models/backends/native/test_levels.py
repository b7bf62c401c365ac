"""The libraries of a platform wheel: which one a processor gets, and when none is used."""

import platform
import shutil
from pathlib import Path

import pytest

from stonechat_models.backends.native import bindings, levels
from stonechat_models.backends.native.bindings import load_library
from stonechat_models.backends.native.compile import find_compiler
from stonechat_models.backends.native.levels import LEVELS, find_prebuilt, library_name
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.hardware.cpus import processor_flags
from tests.models.backends.native.native_helpers import make_model

# What Linux lists for these processors, shortened to what may matter.
SSE = "fpu sse sse2 ssse3 sse4_1 sse4_2 popcnt"
HASWELL = f"{SSE} avx avx2 bmi1 bmi2 f16c fma abm movbe"
SKYLAKE_X = f"{HASWELL} avx512f avx512bw avx512cd avx512dq avx512vl"
CASCADE_LAKE = f"{SKYLAKE_X} avx512_vnni"
ZEN4 = f"{CASCADE_LAKE} avx512_bf16 avx512_vbmi2"
ARM_DOTPROD = "fp asimd fphp asimdhp asimddp"
PROCESSORS = {
    "x86_64": {
        SSE: "plain",
        f"{SSE} avx": "plain",
        HASWELL: "avx2",
        SKYLAKE_X: "avx2",
        f"{HASWELL} avx_vnni": "avx2-vnni",
        CASCADE_LAKE: "avx512",
        ZEN4: "avx512-bf16",
        f"{ZEN4} avx_vnni amx_tile amx_int8 amx_bf16": "avx512-amx",
    },
    "aarch64": {
        "fp asimd evtstrm crc32": "neon",
        ARM_DOTPROD: "neon-dotprod",
        f"{ARM_DOTPROD} sve sve512": "neon-dotprod",
        f"{ARM_DOTPROD} i8mm bf16": "neon-i8mm",
        f"{ARM_DOTPROD} i8mm bf16 sve svei8mm svebf16 sve128 sve2": "neon-i8mm",
        f"{ARM_DOTPROD} i8mm bf16 sve svei8mm svebf16 sve256": "sve256",
    },
}


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the libraries, empty."""
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    monkeypatch.setattr(levels, "PREBUILT", folder)
    monkeypatch.delenv("CXX", raising=False)
    return folder


def best_level() -> levels.Level:
    if platform.machine() not in LEVELS:
        pytest.skip(f"there are no libraries for {platform.machine()}")
    flags = processor_flags()
    return next(level for level in LEVELS[platform.machine()] if level.needs <= flags)


def without_a_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hide all compilers, and give the process an empty cache."""
    patch.setenv("PATH", str(folder / "nothing"))
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert find_compiler() is None


@pytest.mark.parametrize("machine", PROCESSORS)
def test_a_processor_gets_the_fastest_library_that_it_can_run(machine: str, prebuilt: Path) -> None:
    for level in LEVELS[machine]:
        (prebuilt / library_name(machine, level)).touch()
    for flags, expected in PROCESSORS[machine].items():
        path = find_prebuilt(machine, flags.split())
        assert path is not None
        assert path.name.rpartition("-")[0] == f"{machine}-{expected}"
    assert find_prebuilt("riscv64", ()) is None


def test_there_is_none_outside_a_platform_wheel() -> None:
    assert find_prebuilt("x86_64", ZEN4.split()) is None


@pytest.mark.parametrize("changed", ["source", "new file", "flags"])
def test_a_library_of_other_sources_is_not_used(
    changed: str, prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "api.cpp").write_text("int a;")
    monkeypatch.setattr(levels, "SOURCES", sources)
    plain = LEVELS["x86_64"][-1]
    (prebuilt / library_name("x86_64", plain)).touch()
    assert find_prebuilt("x86_64", ()) is not None
    if changed == "source":
        (sources / "api.cpp").write_text("int b;")
    elif changed == "new file":
        (sources / "b.h").touch()
    else:
        monkeypatch.setattr(levels, "FLAGS", (*levels.FLAGS, "-ffast-math"))
    assert find_prebuilt("x86_64", ()) is None


def test_a_model_is_supported_without_a_compiler(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without the library is refused, so no compiler is found by another way."""
    from stonechat_models.backends.native import supports

    _, files = make_model("llama", tmp_path / "model")
    compiled = load_library()
    without_a_compiler(monkeypatch, tmp_path)
    assert "no C++ compiler" in str(supports(files, EngineConfig(model="x")))
    library = prebuilt / library_name(platform.machine(), best_level())
    shutil.copy(compiled.path, library)
    assert supports(files, EngineConfig(model="x")) is None
    assert (load_library().path, load_library().isa) == (str(library), compiled.isa)
    assert not (tmp_path / "cache").exists()


def test_a_compiler_that_is_named_compiles(prebuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (prebuilt / library_name(platform.machine(), best_level())).touch()
    monkeypatch.setattr(bindings, "build_library", lambda progress, target: "/compiled")
    monkeypatch.setattr(bindings, "_open", lambda path: path)
    assert str(load_library()) != "/compiled"
    monkeypatch.setenv("CXX", "g++")
    assert str(load_library()) == "/compiled"


def test_a_library_that_cannot_be_loaded_is_compiled_instead(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = load_library()
    broken = prebuilt / library_name(platform.machine(), best_level())
    broken.write_bytes(b"\x7fELF of something else")
    lines: list[str] = []
    assert load_library(lines.append).path == compiled.path
    assert str(broken) in lines[0]
    without_a_compiler(monkeypatch, tmp_path)
    with pytest.raises(UnsupportedModelError, match="no C\\+\\+ compiler"):
        load_library(lines.append)
