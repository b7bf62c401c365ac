"""A server whose template has tools and reasoning, and its requests in Ollama's shape."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.messages_api.scripts import TEMPLATE

USER = {"role": "user", "content": "hi"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE))


def ask(client: TestClient, path: str = "/api/chat", **fields: Any) -> Any:
    """The plain answer. Fails on an error."""
    if path == "/api/chat":
        fields = {"messages": [USER]} | fields
    response = client.post(path, json={"model": "tiny-test", "stream": False} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def lines(client: TestClient, path: str = "/api/chat", **fields: Any) -> list[Any]:
    """The lines of a stream, which is the default."""
    if path == "/api/chat":
        fields = {"messages": [USER]} | fields
    response = client.post(path, json=fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def error(client: TestClient, path: str = "/api/chat", status: int = 400, **fields: Any) -> str:
    """The text of an error, which is all that its body has."""
    if path == "/api/chat":
        fields = {"messages": [USER]} | fields
    response = client.post(path, json=fields)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])
