"""The pages of the API: their requests are answered, and no path is missing."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from stonechat_models import (
    EmbeddingInfo,
    GenerateRequest,
    PairFrame,
    RankingInfo,
    RequestOutput,
)
from stonechat_server.app import create_app
from stonechat_server.completions_api.fill_in import FORMATS
from stonechat_server.settings import Settings
from tests.server.api.openapi.test_document import Document, schema_problems
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info

PAGES = Path(__file__).parents[2] / "docs" / "api"
MODEL = "SmolLM2-135M-Instruct"
VOCAB_SIZE = 49_152
EMBEDDING = EmbeddingInfo(size=2, pooling="mean", is_normalized=True)
REQUEST = re.compile(
    r"curl [^`]*?http://127\.0\.0\.1:8000(\S+)([^`]*)```(?:\s*```json\n(.*?)```)?", re.S
)
BODY = re.compile(r"-d '(.*?)'\n", re.S)


def examples() -> Iterator[Any]:
    for page in sorted(PAGES.glob("*.md")):
        for path, rest, answer in REQUEST.findall(page.read_text(encoding="utf-8")):
            body = BODY.search(rest)
            yield pytest.param(path, body and body[1], answer, id=f"{page.stem}-{path}")


class WrappedTokenizer(ByteTokenizer):
    """Knows as many ids as the tokenizer of the examples."""

    pair_frame = PairFrame([], [10], [], num_between_of_first=1, has_types=False)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id % 256])


class EngineForAll(FakeEngine):
    """Also makes embeddings, and scores documents."""

    async def generate(self, request: GenerateRequest) -> AsyncIterator[RequestOutput]:
        async for output in super().generate(request):
            embedding = None if request.embedding is None else bytes(4 * EMBEDDING.size)
            yield msgspec.structs.replace(output, embedding=embedding)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    engine = EngineForAll(
        model=model_info(
            vocab_size=VOCAB_SIZE,
            embedding=EMBEDDING,
            ranking=RankingInfo(activation="Sigmoid"),
        ),
        tokenizer=WrappedTokenizer(
            vocab_size=VOCAB_SIZE, added_tokens=frozenset(FORMATS[0].tokens)
        ),
    )
    settings = Settings(served_model_name=[MODEL])
    with TestClient(create_app(settings, engine), "http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def document(client: TestClient) -> Document:
    return client.get("/openapi.json").json()


@pytest.mark.parametrize(("path", "body", "answer"), list(examples()))
def test_the_example_is_answered(
    client: TestClient, document: Document, path: str, body: str | None, answer: str
) -> None:
    response = client.get(path) if body is None else client.post(path, json=json.loads(body))
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    if answer:
        operation = document["paths"][path]["get" if body is None else "post"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema_problems(document, schema, json.loads(answer)) == []


def test_every_path_is_on_a_page(document: Document) -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    for path, operations in document["paths"].items():
        for method in operations:
            shown_path = path.replace("{model}", "{id}")
            assert f"`{method.upper()} {shown_path}`" in text, path
