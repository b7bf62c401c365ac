"""The library is compiled once. If it cannot be compiled, there is a reason."""

import shutil
from pathlib import Path

import pytest

from stonechat_models.backends.native import compile as native_compile
from stonechat_models.backends.native import supports
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from tests.models.backends.native.native_helpers import make_model


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
