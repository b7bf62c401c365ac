"""Answers and streams: blocks, stop reasons and usage."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_models import FinishReason
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.messages_api.answers import ask, both, fold, post, stream
from tests.server.messages_api.scripts import call, text_script

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
NOW: dict[str, Any] = {"name": "now", "input_schema": {"type": "object", "properties": {}}}
TOOLS = [WEATHER, NOW]


def test_text(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello wörld 👋")
    answer = both(client)
    assert answer == {
        "type": "message",
        "role": "assistant",
        "model": "tiny-test",
        "content": [{"type": "text", "text": "Hello wörld 👋", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {
            "input_tokens": len(engine.requests[0].prompt_token_ids) - 20,
            "cache_creation_input_tokens": 16,
            "cache_read_input_tokens": 4,
            "output_tokens": 5,
            "output_tokens_details": {"thinking_tokens": 0},
            "cache_creation": None,
            "inference_geo": None,
            "server_tool_use": None,
            "service_tier": "standard",
        },
    }


def test_ids(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(call("now"))
    answers = [ask(client, tools=TOOLS), ask(client, tools=TOOLS)]
    assert all(answer["id"].startswith("msg_") for answer in answers)
    assert all(answer["content"][0]["id"].startswith("toolu_") for answer in answers)
    assert answers[0]["id"] != answers[1]["id"]
    assert answers[0]["content"][0]["id"] != answers[1]["content"][0]["id"]


def test_the_stream_starts_with_the_usage_of_the_prompt(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.script = text_script("Hello")
    start, *_ = events = stream(client)
    assert start["message"]["usage"]["cache_read_input_tokens"] == 4
    assert start["message"]["usage"]["output_tokens"] == 0
    assert start["message"]["content"] == []
    assert events[-2]["usage"]["output_tokens"] == 2


def test_an_empty_answer_has_no_blocks(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("")
    assert both(client)["content"] == []


def test_thinking_text_and_calls_are_blocks(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(
        "<think>Look it up.</think>\n\nOne moment." + call("get_weather", city="Rome") + call("now")
    )
    answer = both(client, tools=TOOLS)
    thinking, text, weather, now = answer["content"]
    assert thinking["type"] == "thinking"
    assert thinking["thinking"] == "Look it up."
    assert thinking["signature"]
    assert text["text"] == "One moment."
    common = {"type": "tool_use", "caller": {"type": "direct"}}
    assert weather == common | {"name": "get_weather", "input": {"city": "Rome"}}
    assert now == common | {"name": "now", "input": {}}
    assert answer["stop_reason"] == "tool_use"
    assert answer["usage"]["output_tokens_details"]["thinking_tokens"] > 0


def test_numbers_in_a_call_stay_as_they_were_written(
    client: TestClient, engine: FakeEngine
) -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    number = "123456789012345678901234567890"
    engine.script = text_script(
        f'<tool_call>\n{{"name": "f", "arguments": {{"a": {number}, "b": 1.50}}}}\n</tool_call>'
    )
    response = post(client, tools=[{"name": "f", "input_schema": schema}])
    assert f'"a": {number}' in response.text.replace('":', '": ').replace(":  ", ": ")
    assert response.json()["content"][0]["input"] == {"a": int(number), "b": 1.5}


@pytest.mark.parametrize(
    ("finish", "stop_reason"),
    [(FinishReason.LENGTH, "max_tokens"), (FinishReason.STOP, "end_turn")],
)
def test_a_cut_call_keeps_its_text(
    client: TestClient, engine: FakeEngine, finish: FinishReason, stop_reason: str
) -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ro'
    engine.script = text_script(text, finish, stop_reason=7)
    answer = ask(client, tools=TOOLS)
    assert answer["stop_reason"] == stop_reason
    (block,) = answer["content"]
    assert block["input"] == {"INVALID_JSON": '{"city": "Ro'}
    events = stream(client, tools=TOOLS)
    pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(pieces) == '{"city": "Ro'
    assert fold(events)["stop_reason"] == stop_reason


def test_hidden_thinking_is_in_the_signature(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>Secret plan: ä.</think>\nHello")
    thinking = {"type": "adaptive", "display": "omitted"}
    answer = both(client, thinking=thinking)
    hidden, text = answer["content"]
    assert hidden["thinking"] == ""
    assert text["text"] == "Hello"
    assert "Secret" not in json.dumps(answer)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": [hidden, text]}]
    ask(client, messages=[*messages, {"role": "user", "content": "go on"}])
    assert "<think>Secret plan: ä.</think>\nHello" in engine.prompt


@pytest.mark.parametrize(
    ("finish", "changes", "stop_reason", "stop_sequence"),
    [
        (FinishReason.STOP, {"stop_reason": "END"}, "stop_sequence", "END"),
        (FinishReason.STOP, {"stop_reason": 7}, "end_turn", None),
        (FinishReason.STOP, {}, "end_turn", None),
        (FinishReason.LENGTH, {}, "max_tokens", None),
    ],
)
def test_stop_reasons(
    client: TestClient,
    engine: FakeEngine,
    finish: FinishReason,
    changes: dict[str, Any],
    stop_reason: str,
    stop_sequence: str | None,
) -> None:
    engine.script = text_script("Hello", finish, **changes)
    answer = both(client, stop_sequences=["END"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == (stop_reason, stop_sequence)
    assert engine.stop_rules.strings == ("END",)


def test_the_end_of_the_context_is_a_reason_of_its_own(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.model = model_info(max_model_len=200)
    engine.script = text_script("Hello", FinishReason.LENGTH)
    assert both(client, max_tokens=1000)["stop_reason"] == "model_context_window_exceeded"
    assert both(client, max_tokens=-1)["stop_reason"] == "model_context_window_exceeded"
    assert both(client, max_tokens=10)["stop_reason"] == "max_tokens"


def test_no_tokens_fill_the_cache_only(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("", FinishReason.LENGTH, num_tokens=0)
    answer = both(client, max_tokens=0)
    assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")
    assert answer["usage"]["output_tokens"] == 0
    assert engine.requests[-1].params.max_tokens == 0


PIECES = st.lists(
    st.sampled_from(
        [
            *("<think>", "</think>", "<tool_call>", "\n", "Hello", "wörld 👋", '{"a": ', "}"),
            call("get_weather", city="Rome"),
            call("now"),
        ]
    ),
    max_size=6,
)


@settings(suppress_health_check=list(HealthCheck))
@given(pieces=PIECES)
def test_a_stream_is_the_plain_answer(
    client: TestClient, engine: FakeEngine, pieces: list[str]
) -> None:
    engine.script = text_script("".join(pieces))
    both(client, tools=TOOLS)
