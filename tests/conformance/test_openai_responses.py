"""Runs the official client's Responses API on a real model. Its own types parse every answer."""

from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from tests.openai_schema import validate

from .conftest import LiveServer

WEATHER: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    name: str
    number_of_people: int


@pytest.fixture
def fields(server: LiveServer) -> dict[str, Any]:
    """A short answer, which is always the same."""
    return {
        "model": server.model,
        "instructions": "You are a helpful assistant.",
        "input": "Tell me about the sea, with emoji 🌊.",
        "max_output_tokens": 24,
        "seed": 11,
    }


def create(client: openai.OpenAI, fields: dict[str, Any]) -> Response:
    """Fields that the client does not know go beside those that it does."""
    known = dict(fields)
    seed = known.pop("seed")
    answer: Response = client.responses.create(**known, extra_body={"seed": seed})
    validate("Response", answer.model_dump(mode="json", exclude_unset=True))
    return answer


def test_streaming_equals_plain_and_chat(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = create(client, fields)
    assert answer.status == "incomplete"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 24
    known = {key: value for key, value in fields.items() if key != "seed"}
    with client.responses.stream(**known, extra_body={"seed": fields["seed"]}) as stream:
        events = list(stream)
    last: Any = events[-1]
    assert last.response.output_text == answer.output_text
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == (
        answer.output_text
    )
    chat = client.chat.completions.create(
        model=fields["model"],
        messages=[
            {"role": "system", "content": fields["instructions"]},
            {"role": "user", "content": fields["input"]},
        ],
        max_completion_tokens=24,
        seed=11,
    )
    assert chat.choices[0].message.content == answer.output_text
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == answer.usage.input_tokens


def test_a_call_and_its_result(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    given: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    fields |= {"input": given, "tools": [WEATHER], "tool_choice": "required"}
    fields["parallel_tool_calls"] = False
    answer = create(client, fields | {"max_output_tokens": 200})
    (call,) = answer.output
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    given += [*answer.output, result]
    answer = create(client, fields | {"tool_choice": "none"})
    assert [item.type for item in answer.output] == ["message"]


def test_a_schema_is_enforced(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    answer = client.responses.parse(
        model=fields["model"], input="A city.", text_format=City, temperature=0
    )
    assert isinstance(answer.output_parsed, City)


def test_an_error_names_the_field(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, fields | {"conversation": "conv_1"})
    assert caught.value.param == "conversation"


def test_the_tokens_of_a_prompt_are_counted(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    asked: dict[str, Any] = {key: fields[key] for key in ("model", "instructions", "input")}
    asked["tools"] = [WEATHER]
    counted = client.responses.input_tokens.count(**asked)
    validate("TokenCountsResource", counted.model_dump(mode="json"))
    answer = create(client, fields | asked)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens
    asked |= {"input": "And then?", "previous_response_id": answer.id}
    counted = client.responses.input_tokens.count(**asked)
    answer = create(client, fields | asked)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_conversation_is_stored(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    """The second turn reads nothing of the first again."""
    first = create(client, fields)
    again = {"input": "And the wind?", "previous_response_id": first.id}
    second = create(client, fields | again)
    assert second.previous_response_id == first.id
    assert first.usage is not None
    assert second.usage is not None
    block = 16
    cached = second.usage.input_tokens_details.cached_tokens
    assert cached > first.usage.total_tokens - 2 * block
    whole: list[Any] = [
        {"role": "user", "content": fields["input"]},
        *first.output,
        {"role": "user", "content": again["input"]},
    ]
    assert create(client, fields | {"input": whole}).output_text == second.output_text
    assert client.responses.retrieve(second.id) == second
    items = list(client.responses.input_items.list(second.id, order="asc", limit=2))
    assert [getattr(item, "role", None) for item in items] == ["user", "assistant", "user"]
    client.responses.delete(second.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(second.id)
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, fields | {"previous_response_id": second.id})
    assert caught.value.code == "previous_response_not_found"
    with client.responses.stream(
        model=fields["model"], input="Go on.", previous_response_id=first.id, max_output_tokens=4
    ) as stream:
        *_, last = stream
    assert last.type == "response.incomplete"
    stored = client.responses.retrieve(last.response.id)
    assert stored.output_text == last.response.output_text
