"""The installer of clients leaves alone what it has installed."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "clients.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, which only makes a folder where it would install."""
    spec = importlib.util.spec_from_file_location("clients_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(target: Path, *_: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, "install_python", make)
    monkeypatch.setattr(module, "install_node", lambda folder, name: make(folder / name))
    return module


def test_all_but_the_large_ones_are_installed_once(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(tmp_path, [])
    installed = {path.name for path in tmp_path.iterdir()}
    assert installed == (script.PYTHON.keys() | script.NODE.keys()) - script.LARGE
    assert len(capsys.readouterr().out.splitlines()) == len(installed)
    script.main(tmp_path, [])
    assert capsys.readouterr().out == ""


def test_a_new_version_is_installed(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(tmp_path, ["aider", "node"])
    capsys.readouterr()
    script.PYTHON["aider"] = ["aider-chat==999"]
    script.NODE["node"] = {"openai": "999"}
    script.main(tmp_path, ["aider", "node"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_every_version_is_pinned(script: ModuleType) -> None:
    assert all("==" in package for packages in script.PYTHON.values() for package in packages)
    assert all(v[0].isdigit() for packages in script.NODE.values() for v in packages.values())
