"""Aliases: short names for models."""

from pathlib import Path

import pytest

from stonechat_models.checkpoint import resolve
from stonechat_models.checkpoint.alias_target import alias_model
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.known import aliases
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.checkpoint.hub_cache import add_hub_model


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


def test_what_an_alias_can_stand_for(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_hub_model(caches, "owner/tiny", {"config.json": b"{}"})
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    targets = {
        "owner/tiny": "owner/tiny",
        "owner/tiny:Q4_K_M": "owner/tiny:Q4_K_M",
        "model.gguf": str(tmp_path / "model.gguf"),
        "./model": str(tmp_path / "model"),
        "default": "default",
        "SmolLM2-135M-Instruct": "default",
    }
    for model, target in targets.items():
        assert alias_model("one", model) == target
        assert alias_model("two", "one") == target  # not an alias of an alias
        assert aliases.read_aliases() == {"one": target, "two": target}


def test_an_alias_of_nothing_is_refused(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for model in ("nothing", "owner/nothing", "./nothing", "empty", "nothing.gguf", "a b"):
        with pytest.raises(ModelLoadError, match=r"not on this machine|there is no model"):
            alias_model("mine", model)
    assert aliases.read_aliases() == {}


def test_an_alias_of_a_model_of_the_hub_needs_no_download(
    caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: ["a-Q8_0.gguf"])
    assert alias_model("mine", "owner/far") == "owner/far"
    assert alias_model("mine", "owner/far/a-Q8_0.gguf") == "owner/far/a-Q8_0.gguf"
    with pytest.raises(ModelLoadError, match=r"owner/far has no file b\.gguf"):
        alias_model("mine", "owner/far/b.gguf")
