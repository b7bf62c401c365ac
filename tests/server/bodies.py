"""Makes request bodies, and reads answers and streams."""

import json
from typing import Any

from fastapi.testclient import TestClient
from httpx import Response

URL = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    """The smallest valid request, with `fields` added."""
    return {"model": "tiny-test", "messages": [{"role": "user", "content": "hi"}]} | fields


def post(client: TestClient, **fields: Any) -> Response:
    return client.post(URL, json=body(**fields))


def ask(client: TestClient, **fields: Any) -> Any:
    """The plain answer. Fails on an error."""
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def events(response: Response) -> list[Any]:
    """The chunks of a complete stream. Checks its framing and its end."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def stream(client: TestClient, **fields: Any) -> list[Any]:
    return events(post(client, stream=True, **fields))


def error_of(response: Response) -> dict[str, Any]:
    """The error object. Checks that it has the fields that every error must have."""
    document = response.json()
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error
