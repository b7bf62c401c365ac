"""`functions` and `function_call`: the server treats them as tools and answers in their format."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.server.bodies import ask, error_of, post, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, text_script

FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_a_call_is_answered_as_a_function_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("I look.\n", *CALL)
    answer = ask(client, functions=[FUNCTION])
    ChatCompletion.model_validate(answer, strict=True)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "function_call"
    message = choice["message"]
    assert message["content"] == "I look."
    assert message["function_call"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    assert "tool_calls" not in message
    engine.script = text_script(CALL)
    assert ask(client, functions=[FUNCTION])["choices"][0]["message"]["content"] is None


def test_a_call_is_streamed_as_a_function_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(*CALL)
    chunks = stream(client, functions=[FUNCTION], n=2)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    for index in range(2):
        choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        calls = [c["delta"]["function_call"] for c in choices if "function_call" in c["delta"]]
        assert calls[0]["name"] == "get_weather"
        assert not any("name" in call for call in calls[1:])
        assert "".join(call["arguments"] for call in calls) == '{"city": "Rome"}'
        assert len(calls) > 2
        assert choices[-1]["finish_reason"] == "function_call"
        assert not any("tool_calls" in c["delta"] for c in choices)


def test_function_call_equals_tool_choice_with_one_call(
    client: TestClient, engine: FakeEngine
) -> None:
    for choice, tool_choice in (
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        (
            {"name": "get_weather"},
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ):
        ask(client, functions=[FUNCTION], function_call=choice)
        ask(client, tools=[TOOL], tool_choice=tool_choice, parallel_tool_calls=False)
        legacy_request, tools_request = engine.requests[-2:]
        assert legacy_request.params == tools_request.params
        assert legacy_request.prompt_token_ids == tools_request.prompt_token_ids


def test_an_answer_without_a_call(client: TestClient) -> None:
    choice = ask(client, functions=[FUNCTION])["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "function_call" not in choice["message"]


def test_function_call_without_functions_has_no_effect(
    client: TestClient, engine: FakeEngine
) -> None:
    for choice in ("none", "auto"):
        ask(client, function_call=choice)
        assert engine.requests[-1].params.grammar is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"functions": [FUNCTION], "tools": [TOOL]}, "functions"),
        ({"functions": [FUNCTION], "tools": []}, "functions"),
        ({"functions": []}, "functions"),
        ({"functions": [FUNCTION] * 129}, "functions"),
        ({"functions": [FUNCTION], "tool_choice": "auto"}, "tool_choice"),
        ({"functions": [FUNCTION], "parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"functions": [FUNCTION], "function_call": {"name": "x"}}, "function_call.name"),
        ({"functions": [FUNCTION], "function_call": "required"}, "function_call"),
        ({"function_call": {"name": "get_weather"}}, "function_call"),
        ({"tools": [TOOL], "function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "a b"}]}, "functions[0].name"),
        ({"functions": [FUNCTION, {"name": FUNCTION["name"]}]}, "functions[1].name"),
        (
            {"functions": [{"name": "f", "parameters": {"not": {}}, "strict": True}]},
            "functions[0].parameters",
        ),
        (
            {"functions": [{"name": "f", "parameters": {"type": "array"}, "strict": True}]},
            "functions[0].parameters",
        ),
    ],
)
def test_mistakes_are_a_400_that_names_the_field(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_the_metrics_have_the_finish_reason_that_the_client_sees(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = new_client()
    engine.script = text_script(CALL)
    ask(client, functions=[FUNCTION])
    assert 'finished_reason="function_call"' in client.get("/metrics").text
