"""Embeddings of GGUF files at the endpoints of OpenAI and Ollama."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models import EngineConfig, Tokenizer
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from tests.models.compiled_cache import use_model_cache
from tests.models.converted_encoders import tiny_encoder, write_encoder
from tests.models.tiny_gguf import write_tiny_gguf
from tests.server.bodies import error_of
from tests.server.embeddings_api.conftest import URL
from tests.server.real_models import Serve

TEXTS = ["the cat sat on the mat", "12 in", "x"]


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model_cache(tmp_path / "cache", monkeypatch)


def vectors(client: Any) -> list[list[float]]:
    """The embeddings of both endpoints, which are the same."""
    body = client.post(URL, json={"input": TEXTS}).json()
    answer = client.post("/api/embed", json={"model": body["model"], "input": TEXTS})
    rows = [item["embedding"] for item in body["data"]]
    for mine, theirs in zip(rows, answer.json()["embeddings"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6)
    return rows


@torch.inference_mode()
def last_states(path: Path) -> torch.Tensor:
    config = EngineConfig(model=str(path), device="cpu")
    files = resolve_model(config, print)
    module: Any = load_module(files, config, torch.device("cpu"), torch.float32)
    tokenizer = Tokenizer.from_folder(files.folder)
    rows = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    states = [module.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
    return torch.nn.functional.normalize(torch.stack(states), dim=-1)


@pytest.mark.parametrize("backend", ["transformers", "native"])
def test_a_decoder_that_pools_last_tokens_makes_embeddings_only(
    backend: str, serve: Serve, tmp_path: Path
) -> None:
    path = write_tiny_gguf(
        tmp_path / "x.gguf",
        "qwen3",
        metadata={"pooling_type": 3},
        skip=frozenset({"output.weight"}),
    )
    options = {"dtype": "float32"} if backend == "transformers" else {}
    client = serve(path, backend=backend, **options)
    actual = torch.tensor(vectors(client))
    tolerance = 1e-4 if backend == "transformers" else 0.03
    torch.testing.assert_close(actual, last_states(path), atol=tolerance, rtol=0)
    error = error_of(client.post("/v1/completions", json={"prompt": "x"}))
    assert error["code"] == "model_not_generative"


def test_an_encoder(serve: Serve, tmp_path: Path) -> None:
    module = tiny_encoder("bert")
    client = serve(write_encoder(module, "bert", tmp_path / "tiny.gguf"), dtype="float32")
    rows = torch.tensor(vectors(client))
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3))
    shown = client.post("/api/show", json={"model": "tiny"}).json()
    assert shown["capabilities"] == ["embedding"]
    error = error_of(client.post("/v1/completions", json={"prompt": "x"}))
    assert error["code"] == "model_not_generative"
