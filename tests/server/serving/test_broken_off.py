"""An engine that stops in the middle of an answer is an error on every endpoint, never a result."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import GenerateRequest
from tests.server.fake_engine import FakeEngine, delta, output

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
}


@pytest.fixture
def engine() -> FakeEngine:
    def play(request: GenerateRequest) -> list[Any]:
        return [output(request, delta("Hel")), output(request, delta("lo"), finished=True)]

    return FakeEngine(script=play)


@pytest.mark.parametrize("path", BODIES)
def test_a_plain_answer_is_a_500(client: TestClient, path: str) -> None:
    response = client.post(path, json=BODIES[path])
    assert response.status_code == 500, response.text
    assert "error" in response.json()


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/chat/completions", 'data: {"error":'),
        ("/v1/completions", 'data: {"error":'),
        ("/v1/responses", "event: response.failed"),
        ("/v1/messages", "event: error"),
    ],
)
def test_a_stream_ends_with_an_error(client: TestClient, path: str, last: str) -> None:
    response = client.post(path, json=BODIES[path] | {"stream": True})
    assert response.status_code == 200
    events = response.text.strip().split("\n\n")
    assert "Hel" in response.text
    assert events[-1].startswith(last)
