"""Aliases: short names for models."""

from pathlib import Path

import pytest

from stonechat_models.checkpoint import aliases, resolve
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError


def test_an_alias_stands_for_a_model_everywhere(
    caches: Path, default_model_files: ModelFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.set_alias("tiny", str(default_model_files.gguf))
    assert aliases.read_aliases() == {"tiny": str(default_model_files.gguf)}
    monkeypatch.setattr(resolve, "converted_folder", lambda *_: default_model_files.folder)
    files = resolve.resolve_model(EngineConfig(model="tiny"), lambda line: None)
    assert files.gguf == default_model_files.gguf
    headers = read_headers(EngineConfig(model="tiny"), lambda line: None)
    assert headers.weight_format == "gguf"
    aliases.set_alias("tiny", None)
    assert aliases.resolve_alias("tiny") == "tiny"
    with pytest.raises(ModelLoadError, match="no alias"):
        aliases.set_alias("tiny", None)


@pytest.mark.parametrize("name", ["a/b", "", "../x", "default", "-x"])
def test_some_names_cannot_be_an_alias(caches: Path, name: str) -> None:
    with pytest.raises(ModelLoadError, match="cannot be an alias"):
        aliases.set_alias(name, "x")


def test_a_folder_wins_over_an_alias(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aliases.set_alias("mine", "other/model")
    assert aliases.resolve_alias("mine") == "other/model"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert aliases.resolve_alias("mine") == "mine"


def test_a_damaged_alias_file_is_named(caches: Path) -> None:
    aliases.set_alias("a", "b")
    aliases.alias_file().write_text("[1]")
    with pytest.raises(ModelLoadError, match=r"aliases\.json"):
        aliases.read_aliases()
