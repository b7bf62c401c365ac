"""`stonechat models`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from stonechat_models import EngineConfig
from stonechat_server.cli import main


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_is_listed_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
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


def test_a_download_says_where_the_model_is_and_can_be_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fetch(config: EngineConfig, progress: Callable[[str], None]) -> Path:
        asked.append((config.model, config.revision))
        progress("half of it")
        if config.model == "a/slow":
            raise KeyboardInterrupt
        return Path("/models/b")

    monkeypatch.setattr("stonechat_models.fetch_model", fetch)
    assert main(["models", "pull", "a/b", "--revision", "v2"]) == 0
    output = capsys.readouterr()
    assert output.out == f"a/b is ready ({Path('/models/b')})\n"
    assert "half of it" in output.err
    assert main(["models", "pull", "a/slow"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert asked == [("a/b", "v2"), ("a/slow", None)]


def test_a_short_name_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "alias", "mine", "nobody/nothing"]) == 1
    assert "nobody/nothing is not on this machine" in capsys.readouterr().err
    assert main(["models"]) == 0
    assert "mine" not in capsys.readouterr().out
    assert main(["models", "alias", "mine", "default"]) == 0
    assert capsys.readouterr().out == "mine stands for default\n"
    assert main(["models", "rm", "mine"]) == 1
    assert "mine is a short name; `stonechat models alias mine` removes it" in (
        capsys.readouterr().err
    )
    assert main(["models", "alias", "mien"]) == 1
    assert "there is no alias mien; did you mean mine?" in capsys.readouterr().err
    assert main(["models", "alias", "mine"]) == 0
    assert "no longer a short name" in capsys.readouterr().out
