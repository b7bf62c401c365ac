"""The models on this machine, in caches that a test fills."""

import shutil
from pathlib import Path

import pytest

from stonechat_models.checkpoint import default_model, store
from stonechat_models.checkpoint.resolve import ModelFiles, fetch_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError


def add_hub_model(caches: Path, name: str, files: dict[str, bytes]) -> Path:
    """Add a model in the layout of the Hugging Face cache. Return its snapshot folder."""
    repo = caches / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for number, (file, content) in enumerate(files.items()):
        blob = repo / "blobs" / f"blob{number}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_empty_caches_have_no_models(caches: Path) -> None:
    assert store.list_models() == []
    for name in ("a/b", "default"):
        with pytest.raises(ModelLoadError, match="not on this machine"):
            store.remove_model(name)


def test_hub_models_are_listed_and_removed(caches: Path) -> None:
    add_hub_model(caches, "owner/one", {"config.json": b"{}", "w.safetensors": b"x" * 1000})
    add_hub_model(caches, "owner/two", {"config.json": b"{}"})
    sizes = {model.name: model.num_bytes for model in store.list_models()}
    assert sizes == {"owner/one": 1002, "owner/two": 2}
    assert store.remove_model("owner/one") == 1002
    assert [model.name for model in store.list_models()] == ["owner/two"]


def test_the_default_model_is_removed_with_its_conversion(
    caches: Path, default_model_files: ModelFiles
) -> None:
    assert default_model_files.gguf is not None
    folder = caches / "cache" / "stonechat" / "default-model" / default_model.GGUF_SHA256[:16]
    folder.mkdir(parents=True)
    shutil.copy(default_model_files.gguf, folder)
    conversion = fetch_model(EngineConfig(model="default"), lambda line: None)
    assert conversion.is_relative_to(caches)
    (model,) = store.list_models()
    assert model.name == default_model.NAME
    assert model.num_bytes > default_model_files.gguf.stat().st_size
    assert store.remove_model("default") == model.num_bytes
    assert not conversion.exists()
    assert store.list_models() == []
