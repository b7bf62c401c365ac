"""`stonechat models`."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from stonechat_server.cli import main


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_is_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "no models yet" in capsys.readouterr().out
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert main(["models", "alias", "mine", "a/b"]) == 0
    assert main(["models", "list"]) == 0
    output = capsys.readouterr().out
    assert "2 bytes" in output
    assert "mine = a/b" in output
    assert main(["models", "rm", "a/b"]) == 0
    assert not snapshot.exists()


def test_a_failed_action_prints_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["rm", "a/b"], ["pull", "a/b"], ["alias", "x/y", "z"], ["alias", "nothing"]):
        assert main(["models", *words]) == 1
        assert "stonechat models: " in capsys.readouterr().err
