"""Sends requests to `/v1/messages`, and checks each answer and event with Anthropic's own types."""

import json
from typing import Any

from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from fastapi.testclient import TestClient
from httpx import Response
from pydantic import BaseModel, TypeAdapter

URL = "/v1/messages"
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def body(**fields: Any) -> dict[str, Any]:
    """The smallest valid request, with `fields` added."""
    messages = [{"role": "user", "content": "hi"}]
    return {"model": "tiny-test", "max_tokens": 100, "messages": messages} | fields


def post(client: TestClient, **fields: Any) -> Response:
    return client.post(URL, json=body(**fields))


def ask(client: TestClient, **fields: Any) -> Any:
    """The plain answer. Fails on an error."""
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    check_known(Message.model_validate_json(response.content, strict=True))
    return response.json()


def stream(client: TestClient, **fields: Any) -> list[Any]:
    """The events of a stream. Checks its framing and the order of the events."""
    response = post(client, **fields | {"stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, rest = response.text.split("\n\n")
    assert rest == ""
    events = []
    for part in parts:
        name, data = part.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        check_known(EVENT.validate_json(json.dumps(event), strict=True))
        events.append(event)
    check_order(events)
    return events


def both(client: TestClient, **fields: Any) -> Any:
    """The plain answer, which the fold of the stream by Anthropic's client must equal."""
    plain, folded = ask(client, **fields), fold(stream(client, **fields))
    for answer in (plain, folded):
        del answer["id"]
        for block in answer["content"]:
            if block["type"] == "tool_use":
                del block["id"]
    assert folded == plain
    return plain


def fold(events: list[Any]) -> Any:
    """What Anthropic's client makes of the events."""
    snapshot: Any = None
    buffers: dict[int, bytes] = {}
    for event in events:
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    folded = Message.model_validate(snapshot.model_dump()).model_dump(exclude_unset=True)
    return _without_absent(folded)


def check_order(events: list[Any]) -> None:
    """One block after the other, between the start of the message and its end."""
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    index, is_open = -1, False
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert not is_open
            index, is_open = index + 1, True
        else:
            assert is_open
            is_open = event["type"] != "content_block_stop"
        assert event["index"] == index
    assert not is_open


def check_known(model: Any) -> None:
    """Fail for keys that Anthropic's types do not have."""
    if isinstance(model, BaseModel):
        assert not model.model_extra, model.model_extra
        for name in model.model_fields_set:
            check_known(getattr(model, name))
    elif isinstance(model, list):
        for item in model:
            check_known(item)


def error_of(response: Response) -> Any:
    """The error object without its details. Checks its shape."""
    document = response.json()
    assert document.keys() == {"type", "error", "request_id"}
    assert document["request_id"] == response.headers["request-id"]
    error = document["error"]
    assert error.pop("details", {"param": ""}).keys() <= {"error_code", "param"}
    if error["type"] != "request_too_large":  # documented, but not among the types
        check_known(ErrorResponse.model_validate_json(json.dumps(document), strict=True))
    assert error["message"]
    return error


def count(client: TestClient, **fields: Any) -> int:
    """The answer to a request to count tokens."""
    request = body(**fields)
    del request["max_tokens"]
    response = client.post(f"{URL}/count_tokens", json=request)
    assert response.status_code == 200, response.text
    check_known(MessageTokensCount.model_validate_json(response.content, strict=True))
    return int(response.json()["input_tokens"])


def _without_absent(value: Any) -> Any:
    """Drop what Anthropic's client adds to its snapshots as null."""
    if isinstance(value, dict):
        known_nulls = (
            *("stop_sequence", "stop_details", "container", "citations"),
            *("cache_creation", "inference_geo", "server_tool_use"),
        )
        return {
            key: _without_absent(item)
            for key, item in value.items()
            if item is not None or key in known_nulls
        }
    return [_without_absent(item) for item in value] if isinstance(value, list) else value
