"""A server on a tiny reranker, called in the same process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fastapi.testclient import TestClient
from httpx import Response

from stonechat_server.admission.records import FinishedRequest
from tests.models.tiny_rerankers import save_reranker
from tests.server.real_models import Serve, servers

URL = "/v1/rerank"
QUERY = "the cat sat ?"
DOCUMENTS = ["a dog runs", "the cat sat on the mat", "x", "the dog sat on the mat !"]

Post = Callable[..., Response]


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT for pairs of up to 64 tokens."""
    return save_reranker(tmp_path_factory.mktemp("rerankers") / "tiny-bert", "bert")


@pytest.fixture
def records() -> list[FinishedRequest]:
    """What the servers of `serve` record."""
    return []


@pytest.fixture
def serve(reranker: Path, records: list[FinishedRequest]) -> Iterator[Serve]:
    """Starts servers, by default on `reranker`."""
    with servers(reranker, records) as start:
        yield start


@pytest.fixture(scope="module")
def client(reranker: Path) -> Iterator[TestClient]:
    with servers(reranker, []) as start:
        yield start()


@pytest.fixture
def post(client: TestClient) -> Post:
    def send(query: Any = QUERY, documents: Any = DOCUMENTS, **fields: Any) -> Response:
        return client.post(URL, json={"query": query, "documents": documents, **fields})

    return send


@torch.inference_mode()
def expected(
    folder: Path, query: str, documents: list[str], **options: Any
) -> tuple[list[float], int]:
    """The logits of plain transformers, of one pair at a time, and the tokens of all pairs.

    `options` are those of the tokenizer of transformers.
    """
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    auto = transformers.AutoModelForSequenceClassification
    module = auto.from_pretrained(folder, dtype=torch.float32)
    inputs = [tokenizer([(query, text)], return_tensors="pt", **options) for text in documents]
    logits = [module(**item).logits.item() for item in inputs]
    return logits, sum(item["input_ids"].numel() for item in inputs)
