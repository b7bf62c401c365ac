"""Sends requests to `/v1/responses`, and checks each answer and event with OpenAI's own types.

They are checked with the types of OpenAI's client, and with the published API description.
"""

import json
from typing import Any

from fastapi.testclient import TestClient
from httpx import Response
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.openai_schema import validate

URL = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
UNTYPED = {"store", "obfuscation", "name", "bytes"}
"""Keys that OpenAI sends, or describes, and its client's types lack in some places."""
LAST = {"response.completed", "response.incomplete", "response.failed"}

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SHELL: dict[str, Any] = {"type": "custom", "name": "shell", "description": "Runs a command"}


def custom_call(name: str, text: str) -> str:
    """A custom tool's call as a model writes it."""
    return f'<custom_tool_call name="{name}">\n{text}\n</custom_tool_call>'


def body(**fields: Any) -> dict[str, Any]:
    """The smallest valid request, with `fields` added."""
    return {"model": "tiny-test", "input": "hi"} | fields


def post(client: TestClient, **fields: Any) -> Response:
    return client.post(URL, json=body(**fields))


def ask(client: TestClient, **fields: Any) -> Any:
    """The plain answer. Fails on an error."""
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    check_response(response.json())
    return response.json()


def stream(client: TestClient, **fields: Any) -> list[Any]:
    """The events of a stream. Checks its framing and the order of the events."""
    return events_of(post(client, stream=True, **fields))


def events_of(response: Response) -> list[Any]:
    """The events of a complete stream. Checks its framing and the order of the events."""
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
        validate("ResponseStreamEvent", event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    check_order(events)
    check_fold(events)
    return events


def both(client: TestClient, **fields: Any) -> Any:
    """The plain answer, which the last event of the stream must equal."""
    plain, last = ask(client, **fields), stream(client, **fields)[-1]["response"]
    assert without_ids(last) == without_ids(plain)
    return plain


def without_ids(value: Any) -> Any:
    """Drop what differs between two equal answers."""
    if isinstance(value, dict):
        own = ("id", "call_id", "created_at", "completed_at")
        return {key: without_ids(item) for key, item in value.items() if key not in own}
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def texts_of(items: list[Any]) -> list[tuple[str, str]]:
    """The type and the text of each item: of a message, reasoning, arguments or input."""
    return [(item["type"], text_of(item)) for item in items]


def text_of(item: Any) -> str:
    """The text of an item."""
    if item["type"] in ("message", "reasoning"):
        return "".join(part["text"] for part in item.get("content") or item["summary"])
    return str(item["input"] if item["type"] == "custom_tool_call" else item["arguments"])


def check_response(answer: Any) -> None:
    """Fail unless the answer has OpenAI's form and no unknown key."""
    check_known(OpenAIResponse.model_validate_json(json.dumps(answer), strict=True))
    validate("Response", answer)


def check_order(events: list[Any]) -> None:
    """The answer's begin, one item after the other, and the answer's end."""
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] in LAST
    assert not LAST & set(kinds[:-1])
    is_open, index = False, -1
    for event in events[2:-1]:
        if event["type"] == "response.output_item.added":
            assert not is_open
            is_open, index, item_id = True, index + 1, event["item"]["id"]
        else:
            assert is_open
            assert item_id == event.get("item_id", event.get("item", {}).get("id"))
            is_open = event["type"] != "response.output_item.done"
        assert event["output_index"] == index
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done


def check_fold(events: list[Any]) -> None:
    """The pieces of each item are its text, and OpenAI's client can follow the stream."""
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)
    pieces: dict[int, str] = {}
    for event in events:
        state.handle_event(EVENT.validate_python(event))
        if event["type"].endswith(".delta"):
            index = event["output_index"]
            pieces[index] = pieces.get(index, "") + event["delta"]
    for index, item in enumerate(events[-1]["response"]["output"]):
        assert pieces.get(index, "") == text_of(item)


def check_known(model: Any) -> None:
    """Fail for keys that OpenAI's types do not have."""
    if isinstance(model, BaseModel):
        assert not set(model.model_extra or ()) - UNTYPED, model.model_extra
        for name in model.model_fields_set & set(type(model).model_fields):
            check_known(getattr(model, name))
    elif isinstance(model, list):
        for item in model:
            check_known(item)
