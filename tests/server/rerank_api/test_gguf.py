"""Scores by a decoder in a GGUF file whose pooling is `rank`, as llama.cpp makes them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stonechat_models import EngineConfig, Tokenizer, UnsupportedModelError
from stonechat_models.backends.transformers.loading.pretrained import load_module
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.runtime.build import build_engine
from tests.models.compiled_cache import use_model_cache
from tests.models.tiny_gguf import HIDDEN, write_tiny_gguf
from tests.server.bodies import error_of
from tests.server.rerank_api.conftest import URL, Serve

TEMPLATE = "<|im_start|>Which?\n{query}\nThis: {document}<|im_end|>\n"
QUERY = "the {document}"
DOCUMENTS = ["in the 12", "{query}", "x", ""]
RANK = {"pooling_type": 4}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model_cache(tmp_path / "cache", monkeypatch)


def head(num_rows: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(num_rows, HIDDEN)).astype(np.float32)


def save(folder: Path, num_rows: int = 2, template: str | None = TEMPLATE, **options: Any) -> Path:
    others = options.pop("others", {"cls.output.weight": head(num_rows)})
    path = folder / "tiny.gguf"
    return write_tiny_gguf(
        path, "qwen3", metadata=RANK, others=others, rerank_template=template, **options
    )


@torch.inference_mode()
def expected(path: Path, num_rows: int) -> list[float]:
    """The outputs of the head, of each prompt alone in transformers' model; of two outputs, the
    logarithm of the first one's odds after a softmax."""
    config = EngineConfig(model=str(path), device="cpu")
    files = resolve_model(config, print)
    module: Any = load_module(files, config, torch.device("cpu"), torch.float32)
    tokenizer = Tokenizer.from_folder(files.folder)
    numbers = []
    for document in DOCUMENTS:
        text = f"<|im_start|>Which?\n{QUERY}\nThis: {document}<|im_end|>\n"
        ids = tokenizer.encode(text)
        hidden = module.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        outputs = torch.from_numpy(head(num_rows)) @ hidden
        if num_rows == 1:
            numbers.append(outputs.item())
        else:
            share = outputs.double().softmax(0)[0].item()
            numbers.append(math.log(share / (1 - share)))
    return numbers


def numbers(response: Any) -> list[float]:
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda item: item["index"])
    return [item["relevance_score"] for item in results]


@pytest.mark.parametrize("skip", [frozenset(), frozenset({"output.weight"})], ids=["head", "tied"])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_scores_equal_transformers(
    num_rows: int, skip: frozenset[str], serve: Serve, tmp_path: Path
) -> None:
    """llama.cpp writes no `output.weight` for a reranker, whose logits nobody needs."""
    path = save(tmp_path, num_rows, skip=skip)
    body = {"query": QUERY, "documents": DOCUMENTS}
    wanted = expected(path, num_rows)
    assert np.std(wanted) > 1
    client = serve(path, backend="transformers", dtype="float32")
    assert numbers(client.post(URL, json=body | {"raw_scores": True})) == pytest.approx(
        wanted, abs=1e-4
    )
    scores = [1 / (1 + math.exp(-number)) for number in wanted]
    assert numbers(client.post(URL, json=body)) == pytest.approx(scores, abs=1e-5)
    error = error_of(client.post(URL, json=body | {"instruction": "find"}))
    assert (error["param"], error["code"]) == ("instruction", "unsupported_parameter")
    for path, fields in (("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
        error = error_of(client.post(path, json=fields))  # nothing says what its logits mean
        assert error["message"].endswith("Use POST /v1/rerank.")


def test_the_compiled_path(serve: Serve, tmp_path: Path) -> None:
    path = save(tmp_path)
    body = {"query": QUERY, "documents": DOCUMENTS, "raw_scores": True}
    scores = numbers(serve(path, backend="native").post(URL, json=body))
    assert scores == pytest.approx(expected(path, 2), abs=0.2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"template": None}, "without a template"),
        ({"template": "{query}"}, "without a template"),
        ({"num_rows": 3}, "it has cls.output.weight of 3 rows"),
        ({"others": {}}, "it has none"),
        ({"others": {"cls.output.weight": head(2), "cls.weight": head(4)}}, "cls.weight"),
    ],
)
def test_what_is_not_served(options: Any, problem: str, tmp_path: Path) -> None:
    config = EngineConfig(model=str(save(tmp_path, **options)), device="cpu")
    with pytest.raises(UnsupportedModelError, match=problem):
        build_engine(config, print)
