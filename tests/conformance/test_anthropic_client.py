"""Runs Anthropic's client on a real model."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message

from .conftest import LiveServer

SEA: list[Any] = [{"role": "user", "content": "Tell me about the sea, with emoji 🌊."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather of a city", "input_schema": SCHEMA}

ONE_CALL: list[dict[str, Any]] = [
    {"type": "any", "disable_parallel_tool_use": True},
    {"type": "tool", "name": "get_weather"},
]


class Asker:
    """Requests short answers, plain or as a stream."""

    def __init__(self, client: anthropic.Anthropic, model: str) -> None:
        self.client = client
        self.fields: dict[str, Any] = {"model": model, "max_tokens": 24, "messages": SEA}
        self.fields["extra_body"] = {"seed": 11}

    def plain(self, **fields: Any) -> Message:
        answer: Message = self.client.messages.create(**(self.fields | fields))
        Message.model_validate(answer.model_dump(), strict=True)
        return answer

    def stream(self, **fields: Any) -> Message:
        with self.client.messages.stream(**(self.fields | fields)) as stream:
            return stream.get_final_message()

    def both(self, **fields: Any) -> Message:
        plain, streamed = self.plain(**fields), self.stream(**fields)
        assert _shown(plain) == _shown(streamed)
        return plain


def _shown(message: Message) -> tuple[Any, ...]:
    content = [block.model_dump(exclude={"id", "parsed_output"}) for block in message.content]
    return content, message.stop_reason, message.stop_sequence


@pytest.fixture
def ask(server: LiveServer) -> Iterator[Asker]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield Asker(client, server.model)


def test_text_and_its_limit(ask: Asker) -> None:
    answer = ask.both()
    assert [block.type for block in answer.content] == ["text"]
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 24)


def test_the_cache_is_in_the_usage(ask: Asker) -> None:
    fields = {"system": "Answer in the style of a lighthouse keeper. " * 8, "max_tokens": 0}
    first, second = ask.plain(**fields).usage, ask.plain(**fields).usage
    counted = ask.client.messages.count_tokens(
        model=ask.fields["model"], messages=SEA, system=str(fields["system"])
    )
    for usage in (first, second):
        read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        assert usage.input_tokens + (read or 0) + (written or 0) == counted.input_tokens
        assert usage.output_tokens == 0
    assert first.cache_creation_input_tokens
    assert second.cache_creation_input_tokens == 0
    assert second.cache_read_input_tokens == (
        (first.cache_read_input_tokens or 0) + first.cache_creation_input_tokens
    )


@pytest.mark.parametrize("choice", ONE_CALL)
def test_calls(ask: Asker, choice: dict[str, Any]) -> None:
    answer = ask.both(tools=[WEATHER], tool_choice=choice, max_tokens=100)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert call.type == "tool_use"
    assert call.name == "get_weather"
    assert isinstance(call.input["city"], str)


def test_a_form(ask: Asker) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = ask.both(output_config=form, max_tokens=100)
    (block,) = answer.content
    assert block.type == "text"
    assert json.loads(block.text).keys() == {"city"}


def test_a_prefill_and_a_stop_sequence(ask: Asker) -> None:
    messages = [
        {"role": "user", "content": "Count to ten."},
        {"role": "assistant", "content": "1, 2, 3, 4,"},
    ]
    answer = ask.both(messages=messages, stop_sequences=["6"], extra_body={"temperature": 0})
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "6")
    (block,) = answer.content
    assert block.type == "text"
    assert "5" in block.text
