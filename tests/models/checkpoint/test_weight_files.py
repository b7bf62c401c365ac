"""Which files of a folder hold its weights, and the refusals that name what is missing."""

import json
from pathlib import Path

import pytest

from stonechat_models.checkpoint.weight_files import weights_in
from stonechat_models.errors import ModelLoadError


def names(folder: Path, allow_pickle: bool = False) -> list[str]:
    return [path.name for path in weights_in(folder, allow_pickle)]


def add(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).touch()


def add_index(folder: Path, name: str, *files: str) -> None:
    places = {f"weight{number}": file for number, file in enumerate(files)}
    (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))


def test_files_of_other_kinds_do_not_count(tmp_path: Path) -> None:
    add(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    shards = names(tmp_path)
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    add(tmp_path, "adapter_model.safetensors", "consolidated.safetensors", "pytorch_model.bin")
    assert names(tmp_path) == shards
    add_index(tmp_path, "model.safetensors", shards[1], shards[0], shards[1])
    add(tmp_path, "other.safetensors")
    assert names(tmp_path) == shards
    add(tmp_path, "model.safetensors")
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_missing_shards_are_named(tmp_path: Path, allow_pickle: bool) -> None:
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    add_index(tmp_path, "model.safetensors", *shards)
    add(tmp_path, shards[0])
    message = "lacks 2 of the 3 files with its weights: model-00002-of.*, model-00003-of"
    with pytest.raises(ModelLoadError, match=message):
        names(tmp_path, allow_pickle)
    add(tmp_path, *shards[1:])
    assert names(tmp_path, allow_pickle) == shards
    (tmp_path / shards[0]).unlink()
    with pytest.raises(ModelLoadError, match=r"lacks 1 of the 3 files.*: model-00001-of"):
        names(tmp_path, allow_pickle)


def test_without_any_shard_all_are_named(tmp_path: Path) -> None:
    add_index(tmp_path, "model.safetensors", "a.safetensors", "b.safetensors")
    with pytest.raises(ModelLoadError, match=r"lacks 2 of the 2 .*a\.safetensors, b\.safetensors"):
        names(tmp_path)


def test_names_of_shards_say_how_many_there_are(tmp_path: Path) -> None:
    add(tmp_path, "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
    message = r"lacks 1 of the 3 files with its weights: model-00001-of-00003\.safetensors"
    with pytest.raises(ModelLoadError, match=message):
        names(tmp_path)
    add(tmp_path, "model-00001-of-00003.safetensors", "more.safetensors")
    assert len(names(tmp_path)) == 4


def test_missing_pickled_shards_are_named(tmp_path: Path) -> None:
    add_index(tmp_path, "pytorch_model.bin", "pytorch_model-1.bin", "pytorch_model-2.bin")
    add(tmp_path, "pytorch_model-1.bin")
    with pytest.raises(ModelLoadError, match="allow-pickle"):
        names(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lacks 1 .*pytorch_model-2\.bin"):
        names(tmp_path, allow_pickle=True)


@pytest.mark.parametrize(
    ("index", "file", "allow_pickle"),
    [
        ("model.safetensors", "pytorch_model.bin", False),
        ("model.safetensors", "pytorch_model.bin", True),
        ("model.safetensors", "../out.safetensors", False),
        ("model.safetensors", "sub/../../out.safetensors", False),
        ("model.safetensors", "/out.safetensors", False),
        ("model.safetensors", "..\\out.safetensors", False),
        ("model.safetensors", "C:\\out.safetensors", False),
        ("model.safetensors", "", False),
        ("pytorch_model.bin", "../out.bin", True),
        ("pytorch_model.bin", "model.safetensors.gz", True),
    ],
)
def test_an_index_names_only_files_of_its_kind_in_its_folder(
    tmp_path: Path, index: str, file: str, allow_pickle: bool
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    add(tmp_path, "out.safetensors", "out.bin")
    add(folder, "pytorch_model.bin" if index == "model.safetensors" else "pytorch_model-1.bin")
    file = str(tmp_path) + file if file.startswith("/") else file
    add_index(folder, index, file)
    with pytest.raises(ModelLoadError, match=r"index\.json names .*file in its folder"):
        names(folder, allow_pickle)


def test_an_index_may_name_files_in_subfolders_but_not_very_long_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    add(tmp_path, "sub/a.safetensors")
    add_index(tmp_path, "model.safetensors", "sub/a.safetensors")
    assert names(tmp_path) == ["a.safetensors"]
    add_index(tmp_path, "model.safetensors", "x" * 300 + ".safetensors")
    with pytest.raises(ModelLoadError, match=r"cannot read .*index\.json"):
        names(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    add(tmp_path, "model-00001-of-00001.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json"):
        names(tmp_path)
