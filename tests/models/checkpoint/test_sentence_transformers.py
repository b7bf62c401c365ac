"""The files that say how a folder's encoder makes embeddings, and faults in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from stonechat_models.checkpoint.hub import download as hub
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.checkpoint.sentence_transformers import (
    EmbedderFiles,
    read_embedder_files,
    transformer_folder,
)
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from tests.models.tiny_embedders import save_embedder, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an embedder, without an encoder."""
    types = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{name}"}
        for path, name in types.items()
    ]
    (tmp_path / "1_Pooling").mkdir()
    write_json(tmp_path / "modules.json", modules)
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    return tmp_path


def read(folder: Path) -> EmbedderFiles:
    files = read_embedder_files(folder)
    assert files is not None
    return files


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | values)


def test_a_folder_without_modules_is_no_embedder(tmp_path: Path) -> None:
    assert read_embedder_files(tmp_path) is None


def test_defaults(folder: Path) -> None:
    files = read(folder)
    assert files.pooling == ("cls",)
    assert [step.kind for step in files.steps] == ["Normalize"]
    assert (files.max_length, files.lower_case, files.skips_prompt) == (0, False, False)
    assert (files.prompts, files.default_prompt) == ({}, "")


def test_settings_of_all_files_are_read(folder: Path) -> None:
    change(folder, "1_Pooling/config.json", pooling_mode_cls_token=False, include_prompt=False)
    change(folder, "sentence_xlm-roberta_config.json", max_seq_length=128, do_lower_case=True)
    change(
        folder,
        "config_sentence_transformers.json",
        prompts={"query": "q: ", "document": "d: "},
        default_prompt_name="query",
    )
    files = read(folder)
    assert files.pooling == ("mean",)
    assert files.skips_prompt
    assert (files.max_length, files.lower_case) == (128, True)
    assert files.prompts == {"query": "q: ", "document": "d: "}
    assert files.default_prompt == "query"


@pytest.mark.parametrize(("length", "expected"), [(512, 512), (10**30, 0), (1.5e300, 0)])
def test_the_tokenizers_length_counts_without_another(
    folder: Path, length: float, expected: int
) -> None:
    change(folder, "tokenizer_config.json", model_max_length=length)
    assert read(folder).max_length == expected


@pytest.mark.parametrize(
    "name", ["sentence_transformers.base.modules.transformer.Transformer", None]
)
def test_newer_names_of_modules_and_subfolders(folder: Path, name: str | None) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] = {"path": "0_Transformer", "type": name or modules[0]["type"]}
    write_json(folder / "modules.json", modules)
    assert transformer_folder(folder) == folder / "0_Transformer"
    assert read(folder).pooling == ("cls",)


def test_an_encoder_in_a_subfolder_is_found(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    write_json(folder / "modules.json", modules)
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        if path.name != "modules.json":
            path.rename(folder / "0_Transformer" / path.name)
    files = resolve_model(EngineConfig(model=str(folder)), print)
    assert files.name == "model"
    assert files.folder == folder / "0_Transformer"
    assert files.embedder is not None
    assert files.embedder.max_length == 48


@pytest.mark.parametrize(
    ("index", "module", "problem"),
    [
        (0, {"type": "custom_st.Transformer"}, r"module 'custom_st\.Transformer', which is not"),
        (1, {"type": "sentence_transformers.models.WordWeights"}, "is not served"),
        (2, {"type": "sentence_transformers.models.CNN"}, r"models\.CNN', which is not served"),
        (2, {"type": 3}, "is not served"),
        (1, {"path": "../1_Pooling"}, "which is outside the model's"),
        (1, {"path": "/etc"}, "which is outside the model's"),
        (1, {"path": "3_Pooling"}, r"3_Pooling/config\.json is missing"),
    ],
)
def test_modules_that_are_refused(
    folder: Path, index: int, module: dict[str, Any], problem: str
) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[index] |= module
    write_json(folder / "modules.json", modules)
    with pytest.raises(ModelLoadError, match=problem):
        read(folder)


@pytest.mark.parametrize(
    ("kinds", "problem"),
    [
        (["StaticEmbedding"], r"models\.StaticEmbedding', which is not served"),
        (["CLIPModel"], r"models\.CLIPModel', which is not served"),
        (["Transformer", "WeightedLayerPooling", "Pooling", "Normalize"], "WeightedLayerPooling'"),
        (["Transformer", "Dense", "Pooling"], r"models\.Dense', which is not served"),
        (["Transformer", "Pooling", "CNN", "LSTM"], r"models\.CNN'"),
        (["Transformer"], "lists no Pooling"),
    ],
)
def test_the_first_module_that_does_not_fit_is_named(
    folder: Path, kinds: list[str], problem: str
) -> None:
    types = [f"sentence_transformers.models.{kind}" for kind in kinds]
    write_json(folder / "modules.json", [{"path": "", "type": name} for name in types])
    with pytest.raises(ModelLoadError, match=problem):
        read(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[3]", "[]", '[{"type": "x"}]'])
def test_a_broken_list_of_modules(folder: Path, content: str) -> None:
    (folder / "modules.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"modules\.json"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "values", "problem"),
    [
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "'SparseEncoder'"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, "prompts is"),
        ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "which is no prompt"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is -1"),
        ("1_Pooling/config.json", {"pooling_mode": "median"}, "pooling_mode is 'median'"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode is"),
        ("1_Pooling/config.json", {"include_prompt": 1}, "include_prompt is"),
        ("1_Pooling/config.json", {"module_output_name": "x"}, "'x' is not served"),
    ],
)
def test_values_that_are_refused(
    folder: Path, file: str, values: dict[str, Any], problem: str
) -> None:
    change(folder, file, **values)
    with pytest.raises(ModelLoadError, match=problem):
        read(folder)


def test_a_dropout_has_no_effect(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"path": "3_Dropout", "type": "sentence_transformers.models.Dropout"})
    write_json(folder / "modules.json", modules)
    assert [step.kind for step in read(folder).steps] == ["Normalize"]


def test_the_modules_of_a_repository_are_fetched() -> None:
    wanted = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    wanted += ["0_Transformer/tokenizer.json", "additional_chat_templates/tools.jinja"]
    others = ["onnx/model.onnx", "openvino/config.json", "1_Pooling/onnx/config.json"]
    others += ["model.safetensors", "2_Dense/pytorch_model.bin"]
    found = filter_repo_objects(
        [*wanted, *others],
        allow_patterns=hub.FOLDER_PATTERNS,
        ignore_patterns=hub.FOLDER_IGNORED_PATTERNS,
    )
    assert list(found) == wanted
