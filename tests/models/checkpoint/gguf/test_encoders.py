"""Encoders in GGUF files give the embeddings and scores of the original models."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from stonechat_models.backends.base import Text
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.gguf.embedder import NO_POOLING
from stonechat_models.checkpoint.gguf.reader import read_gguf
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.engine.embedding_engine import EmbeddingEngine
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.runtime.build import build_engine, model_use
from tests.models.compiled_cache import use_model_cache
from tests.models.converted_encoders import ENCODERS, tiny_encoder, write_encoder
from tests.models.file_mutations import pack_gguf, unpack_gguf
from tests.models.tiny_gguf import write_tiny_gguf

TEXTS = ("the cat sat on the mat", "unable dog", "x", "the query runs on a passage . " * 3)
CPU = torch.device("cpu")
MEAN, CLS, LAST, RANK = (gguf.PoolingType(i) for i in (1, 2, 3, 4))


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model_cache(tmp_path / "cache", monkeypatch)


def build(path: Path) -> tuple[Any, Any]:
    """Return the model of a file in float32, and its tokenizer."""
    engine, tokenizer = build_engine(
        EngineConfig(model=str(path), device="cpu", dtype="float32", threads=1), print
    )
    assert isinstance(engine, EmbeddingEngine)
    return engine.model, tokenizer


@torch.inference_mode()
def embeddings(module: Any, rows: list[list[int]], pooling: str = "mean") -> torch.Tensor:
    """Embed each text alone, with transformers."""
    vectors = []
    for ids in rows:
        hidden = module(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vectors.append({"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling])
    return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def encode(tokenizer: Any) -> list[list[int]]:
    rows = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    assert all((row[0], row[-1]) == (2, 3) for row in rows)
    return rows


def embed(model: Any, rows: list[list[int]]) -> torch.Tensor:
    vectors: torch.Tensor = model.embed([Text(row) for row in rows])
    return vectors


@pytest.mark.parametrize("name", ENCODERS)
def test_embeddings_equal_transformers(name: str, tmp_path: Path) -> None:
    module = tiny_encoder(name)
    model, tokenizer = build(write_encoder(module, name, tmp_path / "x.gguf"))
    rows = encode(tokenizer)
    expected = embeddings(module, rows)
    assert (expected @ expected.T).min() < 0.95
    torch.testing.assert_close(embed(model, rows), expected, atol=1e-4, rtol=0)
    info = model.info
    assert (info.embedding.pooling, info.embedding.is_normalized) == ("mean", True)
    assert (info.generates, info.max_model_len, info.file_format) == (False, 64, "gguf")
    assert info.notes == ()


@pytest.mark.parametrize(("pooling", "name"), [(CLS, "cls"), (LAST, "lasttoken")])
def test_the_file_names_the_pooling(pooling: gguf.PoolingType, name: str, tmp_path: Path) -> None:
    module = tiny_encoder("bert")
    model, tokenizer = build(write_encoder(module, "bert", tmp_path / "x.gguf", pooling))
    rows = encode(tokenizer)
    torch.testing.assert_close(
        embed(model, rows), embeddings(module, rows, name), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("pooling", [None, gguf.PoolingType.NONE])
def test_without_a_pooling_it_is_the_mean(pooling: gguf.PoolingType | None, tmp_path: Path) -> None:
    module = tiny_encoder("bert")
    model, tokenizer = build(write_encoder(module, "bert", tmp_path / "x.gguf", pooling))
    rows = encode(tokenizer)
    torch.testing.assert_close(embed(model, rows), embeddings(module, rows), atol=1e-4, rtol=0)
    assert model.info.notes == (NO_POOLING,)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("name", ["bert", "nomic-bert"])
def test_quantised_files(name: str, kind: str, tmp_path: Path) -> None:
    """The reference computes with what the file's blocks stand for."""
    module, quantised = tiny_encoder(name), gguf.GGMLQuantizationType[kind]
    path = write_encoder(module, name, tmp_path / "x.gguf", kind=quantised)
    types = {tensor.type_name for tensor in read_gguf(path).tensors.values()}
    assert types == {"F32", kind}
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.dim() > 1:
                blocks = gguf.quantize(value.numpy(), quantised)
                value.copy_(torch.from_numpy(gguf.dequantize(blocks, quantised)))
    model, tokenizer = build(path)
    rows = encode(tokenizer)
    torch.testing.assert_close(embed(model, rows), embeddings(module, rows), atol=1e-4, rtol=0)


@pytest.mark.parametrize("is_ollamas", [False, True])
def test_dense_layers_of_gemma_follow_the_pooling(is_ollamas: bool, tmp_path: Path) -> None:
    """Ollama's file of EmbeddingGemma has another architecture, and names of its own."""
    module, rng = tiny_encoder("gemma-embedding"), np.random.default_rng(0)
    layers = [rng.normal(size=size).astype(np.float32) for size in ((48, 32), (24, 48))]

    def add(writer: gguf.GGUFWriter) -> None:
        for i, layer in enumerate(layers, start=2):
            writer.add_tensor(f"dense_{i}.weight", layer)

    path = write_encoder(module, "gemma-embedding", tmp_path / "x.gguf", add_more=add)
    if is_ollamas:
        metadata, tensors = unpack_gguf(read_gguf(path))
        names = {"dense_2": "dense.0", "dense_3": "dense.1", "output_norm": "norm"}
        renamed = [(names.get(n[:-7], n[:-7]) + n[-7:], *rest) for n, *rest in tensors]
        own = {key.replace("gemma-embedding.", "gemma3."): v for key, v in metadata.items()}
        own |= {"general.architecture": "gemma3", "gemma3.attention.causal": False}
        path.write_bytes(pack_gguf(own, renamed))
    model, tokenizer = build(path)
    rows = encode(tokenizer)
    with torch.inference_mode():
        means = [module(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows]
    vectors = torch.stack(means) @ torch.from_numpy(layers[0]).T @ torch.from_numpy(layers[1]).T
    expected = torch.nn.functional.normalize(vectors, dim=-1)
    torch.testing.assert_close(embed(model, rows), expected, atol=1e-4, rtol=0)
    assert model.info.embedding.size == 24


@pytest.mark.parametrize("pooling", [RANK, None])
@pytest.mark.parametrize("name", ["xlm-roberta", "modern-bert"])
def test_scores_equal_transformers(
    name: str, pooling: gguf.PoolingType | None, tmp_path: Path
) -> None:
    """Older files only have the head."""
    module = tiny_encoder(name, "ForSequenceClassification", num_labels=1)
    model, tokenizer = build(write_encoder(module, name, tmp_path / "x.gguf", pooling))
    frame = tokenizer.pair_frame
    assert (frame.before, frame.between, frame.behind) == ([2], [3], [3])
    texts = [tokenizer.encode(text) for text in TEXTS]
    pairs = [frame.join(texts[0], text)[0] for text in texts]
    with torch.inference_mode():
        expected = [module(input_ids=torch.tensor([pair])).logits.item() for pair in pairs]
    assert np.std(expected) > 0.1
    actual = embed(model, pairs)
    assert actual[:, 1].tolist() == pytest.approx(expected, abs=1e-4)
    scores = torch.tensor(expected).sigmoid().tolist()
    assert actual[:, 0].tolist() == pytest.approx(scores, abs=1e-4)


def test_a_head_beside_a_pooling_of_embeddings_is_not_used(tmp_path: Path) -> None:
    module = tiny_encoder("xlm-roberta", "ForSequenceClassification", num_labels=1)
    model, tokenizer = build(write_encoder(module, "xlm-roberta", tmp_path / "x.gguf", CLS))
    rows = encode(tokenizer)
    expected = embeddings(module.roberta, rows, "cls")
    torch.testing.assert_close(embed(model, rows), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "pooling", "labels", "problem"),
    [
        ("bert", RANK, 1, "its head for scores is not that of RoBERTa"),
        ("distilbert", RANK, 1, "its head for scores is not that of RoBERTa"),
        ("xlm-roberta", RANK, 3, "is a classifier with 3 labels"),
        ("nomic-bert", RANK, 0, "encoders of this architecture that rank texts"),
        ("modern-bert", RANK, 0, r"cls\.output\.weight is missing"),
    ],
)
def test_heads_that_are_not_served(
    name: str, pooling: gguf.PoolingType, labels: int, problem: str, tmp_path: Path
) -> None:
    """llama.cpp leaves out BERT's own pooler, without which its head means nothing."""
    kind = "ForSequenceClassification" if labels else "Model"
    module = tiny_encoder(name, kind, **({"num_labels": labels} if labels else {}))
    with pytest.raises(UnsupportedModelError, match=problem):
        build(write_encoder(module, name, tmp_path / "x.gguf", pooling))


def test_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write_encoder(tiny_encoder("modern-bert"), "modern-bert", tmp_path / "x.gguf")
    metadata, tensors = unpack_gguf(read_gguf(path))
    damages = {"pooling_type": 9, "hidden_activation": "relu", "attention.causal": True}
    for key, value in damages.items():
        path.write_bytes(pack_gguf(metadata | {f"modern-bert.{key}": value}, tensors))
        with pytest.raises(UnsupportedModelError, match=key):
            build(path)


def test_architectures_without_a_module_are_named(tmp_path: Path) -> None:
    for architecture in ("nomic-bert-moe", "neo-bert", "jina-bert-v2", "t5encoder"):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UnsupportedModelError, match=f"architecture '{architecture}'"):
            build(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", ["bert", "nomic-bert", "xlm-roberta"])
def test_headers_say_the_use(name: str, tmp_path: Path) -> None:
    ranks = name == "xlm-roberta"
    kind = "ForSequenceClassification" if ranks else "Model"
    module = tiny_encoder(name, kind, **({"num_labels": 1} if ranks else {}))
    path = write_encoder(module, name, tmp_path / "x.gguf", RANK if ranks else MEAN)
    headers = read_headers(EngineConfig(model=str(path)), print)
    use = model_use(headers.config, headers.weight_format, headers.has_modules)
    assert use == ("reranking" if ranks else "embeddings")
    parameters = dict(module.named_parameters())
    unused = sum(v.numel() for k, v in parameters.items() if "pooler" in k)
    if ranks:  # positions that RoBERTa leaves free
        unused = 2 * 32
    stored = sum(tensor.num_elements for tensor in headers.tensors)
    assert stored == sum(v.numel() for v in parameters.values()) - unused


def test_the_converted_folder_is_one_of_sentence_transformers(tmp_path: Path) -> None:
    path = write_encoder(tiny_encoder("bert"), "bert", tmp_path / "x.gguf", CLS)
    folder = resolve_model(EngineConfig(model=str(path)), print).folder
    kinds = [module["type"] for module in json.loads((folder / "modules.json").read_text())]
    names = ("Transformer", "Pooling", "Normalize")
    assert kinds == [f"sentence_transformers.models.{name}" for name in names]


def test_a_decoder_that_pools_all_tokens(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf", "qwen3", metadata={"pooling_type": 1})
    model, tokenizer = build(path)
    rows = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    config = EngineConfig(model=str(path), device="cpu")
    module: Any = load_module(resolve_model(config, print), config, CPU, torch.float32)
    torch.testing.assert_close(
        embed(model, rows), embeddings(module.model, rows), atol=1e-4, rtol=0
    )
