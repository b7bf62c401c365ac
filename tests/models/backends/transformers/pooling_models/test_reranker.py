"""Scores of pairs, compared with transformers on each pair alone and sentence-transformers."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models.backends.base import Text
from stonechat_models.backends.transformers.pooling_models.reranker import (
    TransformersReranker,
    load_reranker,
)
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.tiny_embedders import MAX_POSITIONS, write_json
from tests.models.tiny_rerankers import DECODERS, FAMILIES, TYPED, save_reranker

CPU = torch.device("cpu")
QUERY = "the cat sat ?"
DOCUMENTS = (
    "the cat sat on the mat",
    "a dog runs",
    "x",
    "unable , the dog sat on the mat . the cat",
)


def load(folder: Path, lines: list[str] | None = None, **settings: Any) -> TransformersReranker:
    config = EngineConfig(model=str(folder), device="cpu", **settings)
    progress = print if lines is None else lines.append
    tokenizer = Tokenizer.from_folder(folder)
    return load_reranker(resolve_model(config, print), config, CPU, tokenizer, progress)


def pairs(folder: Path) -> list[Text]:
    """The pairs of the query and each document."""
    tokenizer = Tokenizer.from_folder(folder)
    query, *documents = (tokenizer.encode(text) for text in (QUERY, *DOCUMENTS))
    return [Text(*tokenizer.pair_frame.join(query, document)) for document in documents]


@torch.inference_mode()
def logits(folder: Path) -> torch.Tensor:
    """The logits [N, 1] of plain transformers, of one pair at a time."""
    import transformers

    named = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    tokenizer = getattr(transformers, named).from_pretrained(folder)
    auto = transformers.AutoModelForSequenceClassification
    module = auto.from_pretrained(folder, dtype=torch.float32)
    inputs = [tokenizer(QUERY, document, return_tensors="pt") for document in DOCUMENTS]
    assert all(("token_type_ids" in item) == ("token_type_ids" in inputs[0]) for item in inputs)
    return torch.cat([module(**item).logits for item in inputs])


def assert_scores(folder: Path, actual: torch.Tensor) -> None:
    expected = logits(folder)
    assert expected.std() > 0.01
    both = torch.cat([expected.sigmoid(), expected], dim=1)
    torch.testing.assert_close(actual, both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_transformers(family: str, tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model", family)
    model = load(folder)
    assert model.pads
    assert_scores(folder, model.embed(pairs(folder)))
    limit = MAX_POSITIONS - 1 if "roberta" in family else MAX_POSITIONS
    assert (model.info.generates, model.info.max_model_len) == (False, limit)
    assert model.info.ranking is not None
    assert model.info.ranking.activation == "Sigmoid"


@pytest.mark.parametrize("family", TYPED)
def test_the_second_text_has_another_token_type(family: str, tmp_path: Path) -> None:
    """The tokenizer's settings decide whether the model is told, as in transformers."""
    folder = save_reranker(tmp_path / "model", family)
    told = load(folder).embed(pairs(folder))
    path = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    write_json(path, json.loads(path.read_text()) | names)
    untold = load(folder).embed(pairs(folder))
    assert_scores(folder, untold)
    assert (told - untold).abs().min() > 1e-5


def test_tokens_of_a_class_with_types_of_its_own(tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model", tokenizer={"tokenizer_class": "BertTokenizer"})
    (folder / "vocab.txt").write_text("\n".join(_vocabulary(folder)) + "\n")
    assert_scores(folder, load(folder).embed(pairs(folder)))


def _vocabulary(folder: Path) -> list[str]:
    vocabulary = Tokenizer.from_folder(folder).vocabulary()
    return sorted(vocabulary, key=lambda token: vocabulary[token])


@pytest.mark.parametrize("family", sorted(DECODERS))
def test_a_decoder_without_padding_scores_one_pair_at_a_time(family: str, tmp_path: Path) -> None:
    """transformers needs the padding token to find the last token of a padded text."""
    folder = save_reranker(tmp_path / "model", family, pad_token_id=None)
    lines: list[str] = []
    model = load(folder, lines)
    assert not model.pads
    assert "one text at a time" in lines[-1]
    assert_scores(folder, model.embed(pairs(folder)))


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
            "Identity",
        ),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}, "Tanh"),
        ({"sbert_ce_default_activation_function": None}, "Sigmoid"),
        ({}, "Sigmoid"),
    ],
)
def test_the_activation_of_the_configuration(
    files: dict[str, Any], name: str, tmp_path: Path
) -> None:
    folder = save_reranker(tmp_path / "model", config=files)
    model = load(folder)
    scores, numbers = model.embed(pairs(folder)).unbind(dim=1)
    assert torch.equal(scores, getattr(torch.nn, name)()(numbers))
    torch.testing.assert_close(numbers, logits(folder)[:, 0], atol=1e-5, rtol=1e-5)
    assert model.info.ranking is not None
    assert model.info.ranking.activation == name


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_with_several_labels_is_refused(labels: int, tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model", num_labels=labels)
    with pytest.raises(UnsupportedModelError, match=f"a classifier with {labels} labels"):
        build_engine(EngineConfig(model=str(folder), device="cpu"), print)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quantize": "int8"}, "is a reranker: leave out --quantize"),
        ({"backend": "native"}, "it is a reranker"),
        ({"max_model_len": 65}, "65 tokens exceeds"),
        ({"max_model_len": 3}, "no room"),
    ],
)
def test_settings_that_rerankers_do_not_have(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=problem):
        load(save_reranker(tmp_path / "model"), **settings)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sentence_transformers": {"activation_fn": "os.system"}}, "'os.system' is not served"),
        ({"is_encoder_decoder": True}, "encoder-decoder models are not served"),
        ({"model_type": "clap"}, "no classifier of type clap"),
    ],
)
def test_what_is_not_served(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model", config=changes)
    with pytest.raises(UnsupportedModelError, match=problem):
        load(folder)


@pytest.mark.parametrize(
    ("kinds", "architecture"),
    [
        (["Transformer", "Dense"], "BertForSequenceClassification"),
        (["Transformer", "Pooling", "Dense"], "BertModel"),
        (["Transformer"], "BertModel"),
    ],
)
def test_other_cross_encoders_are_refused(
    kinds: list[str], architecture: str, tmp_path: Path
) -> None:
    """They would else be taken for encoders that make embeddings."""
    folder = save_reranker(tmp_path / "model", config={"architectures": [architecture]})
    modules = [{"path": "", "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    config = EngineConfig(model=str(folder), device="cpu")
    for load_it in (build_engine, survey_model):
        with pytest.raises(UnsupportedModelError, match="has the modules 'Transformer'"):
            load_it(config, print)


def test_weights_of_the_head_must_be_there(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_reranker(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if "classifier" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"missing keys.*classifier"):
        load(folder)


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="it is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "modernbert", "deberta-v2"])
@pytest.mark.parametrize("activation", ["Sigmoid", "Identity"])
def test_folders_of_sentence_transformers(family: str, activation: str, tmp_path: Path) -> None:
    """As the library writes them, with a prompt, and with what it makes of long texts."""
    from sentence_transformers import CrossEncoder

    source = save_reranker(tmp_path / "source", family)
    function = getattr(torch.nn, activation)()
    prompts = {"search": "query "}
    library = CrossEncoder(
        str(source),
        device="cpu",
        activation_fn=function,
        max_length=32,
        prompts=prompts,
        default_prompt_name="search",
    )
    folder = tmp_path / "model"
    library.save_pretrained(str(folder))
    expected = torch.tensor(library.predict([(QUERY, document) for document in DOCUMENTS]))
    model = load(folder)
    info = model.info.ranking
    assert info is not None
    assert (info.prompt, info.activation, model.info.max_model_len) == ("query ", activation, 32)
    tokenizer = Tokenizer.from_folder(folder)
    query = tokenizer.encode(info.prompt + QUERY)
    texts = [tokenizer.pair_frame.join(query, tokenizer.encode(text)) for text in DOCUMENTS]
    scores = model.embed([Text(*text) for text in texts])[:, 0]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
