"""Tools and tool choices: how they reach the prompt and the grammar, and how calls are read."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import StopRules, StopScope
from tests.server.bodies import ask, error_of, post, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import CHATML, ByteTokenizer, FakeEngine, text_script

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


NOW = named("now")
SQL: dict[str, Any] = {
    "type": "custom",
    "custom": {
        "name": "sql",
        "description": "Runs a query",
        "format": {
            "type": "grammar",
            "grammar": {"syntax": "lark", "definition": 'start: "SELECT 1"'},
        },
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOL_TEMPLATE = """\
{%- if tools %}TOOLS {{ tools | tojson }}
{% endif -%}
{%- for message in messages %}{{ message.role }} {{ message.name }}: {{ message.content }}
{%- for call in message.tool_calls or [] %} CALL {{ call.function.name }} \
{{ call.function.arguments | tojson }}{% endfor %}
{% endfor -%}
"""


def grammar_of(engine: FakeEngine) -> str:
    spec = engine.requests[-1].params.grammar
    assert spec is not None
    return spec.source


@pytest.mark.parametrize("tools", [[WEATHER, NOW, WEATHER], [SQL, SQL], [WEATHER, WEATHER]])
def test_a_tool_that_is_given_twice_is_one_tool(
    new_client: ClientFactory, engine: FakeEngine, tools: list[Any]
) -> None:
    engine.tokenizer = ByteTokenizer(TOOL_TEMPLATE)
    client = new_client()
    ask(client, tools=tools)
    prompt, grammar = engine.prompt, grammar_of(engine)
    ask(client, tools=[tool for i, tool in enumerate(tools) if tool not in tools[:i]])
    assert (engine.prompt, grammar_of(engine)) == (prompt, grammar)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, named("get_weather")]}, "tools[1].function.name"),
        ({"tools": [SQL, WEATHER, named("sql")]}, "tools[2].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice.function.name",
        ),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "custom", "custom": {"name": "sql"}}},
            "tool_choice.custom.name",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "x"}}],
                    },
                },
            },
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"type": "array"}, "strict": True},
                    }
                ]
            },
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    WEATHER,
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {"not": {}}, "strict": True},
                    },
                ]
            },
            "tools[1].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
            "tools[0].function.parameters",
        ),
        (
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "f",
                            "format": {
                                "type": "grammar",
                                "grammar": {"syntax": "regex", "definition": "(a"},
                            },
                        },
                    }
                ]
            },
            "tools[0].custom.format.grammar.definition",
        ),
    ],
)
def test_bad_tools_are_a_400_that_names_them(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_calls_are_read_from_the_answer(client: TestClient, engine: FakeEngine) -> None:
    oslo = CALL.replace("Rome", "Oslo")
    engine.script = text_script("I look.\n", *CALL, "\n" + oslo)
    choice = post(client, tools=[WEATHER]).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    ]
    assert [call["type"] for call in calls] == ["function"] * 2
    assert calls[0]["id"] != calls[1]["id"]


def test_content_is_null_beside_a_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(CALL)
    message = post(client, tools=[WEATHER]).json()["choices"][0]["message"]
    assert message["content"] is None


def test_streamed_content_is_null_beside_a_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(*CALL)
    chunks = stream(client, tools=[WEATHER])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    assert all("content" not in delta for delta in deltas[1:])
    assert stream(client)[0]["choices"][0]["delta"]["content"] == ""


def test_a_custom_call(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script('<custom_tool_call name="sql">\nSELECT 1\n</custom_tool_call>')
    choice = post(client, tools=[SQL]).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "sql", "input": "SELECT 1"}
    assert "SELECT 1" in engine.prompt
    assert "Runs a query" in engine.prompt


def test_stop_strings_do_not_cut_calls(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client()
    fields = {"tools": [WEATHER, SQL], "stop": ["\n"]}
    post(client, **fields)
    rules = engine.stop_rules
    assert rules.strings == ("\n",)
    assert rules.never_after == ("<tool_call>", "<custom_tool_call")
    post(client, **fields, tool_choice="required")
    assert engine.requests[-1].params.stop is None
    post(client, **fields, tool_choice="none")
    assert engine.stop_rules == StopRules(strings=("\n",))
    for tool_format, first in (("llama_json", "{"), ("pythonic", "["), ("hermes", "")):
        post(new_client(tool_format=tool_format), **fields)
        assert engine.stop_rules.never_first == first
    post(new_client(tool_format="qwen_coder"), **fields)
    inner = "<function=get_weather"
    assert engine.stop_rules.never_after == ("<tool_call>", inner, "<custom_tool_call")


def test_without_tools_a_call_is_text(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(CALL)
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
        choice = post(client, **fields).json()["choices"][0]
        assert choice["message"]["content"] == CALL
        assert choice["finish_reason"] == "stop"
        assert engine.requests[-1].params.grammar is None
        assert "get_weather" not in engine.prompt


def test_the_choice_decides_what_the_grammar_allows(client: TestClient, engine: FakeEngine) -> None:
    tools = [WEATHER, NOW]
    post(client, tools=tools)
    assert "TEXT" in grammar_of(engine)
    post(client, tools=tools, tool_choice="required")
    assert "TEXT" not in grammar_of(engine)
    now_choice = {"type": "function", "function": {"name": "now"}}
    post(client, tools=tools, tool_choice=now_choice)
    assert "get_weather" not in grammar_of(engine)
    assert "get_weather" not in engine.prompt
    allowed = {"mode": "auto", "tools": [now_choice]}
    post(client, tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert "get_weather" not in grammar_of(engine)
    assert "get_weather" in engine.prompt
    assert "TEXT" in grammar_of(engine)


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather and time?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "c1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            },
            {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}},
        ],
    },
    {"role": "tool", "tool_call_id": "c2", "content": "12:00"},
    {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
]


def test_a_template_without_tools_gets_them_as_text(client: TestClient, engine: FakeEngine) -> None:
    post(client, tools=[WEATHER], messages=HISTORY)
    prompt = engine.prompt
    assert prompt.startswith("<|im_start|>system\nYou can call these functions:\n")
    assert json.dumps(WEATHER["function"]) in prompt
    assert (
        f"<|im_start|>assistant\n{CALL}\n"
        '<custom_tool_call name="sql">\nSELECT 1\n</custom_tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response name="sql">\n12:00\n</tool_response>\n'
        '<tool_response name="get_weather">\nSunny\n</tool_response><|im_end|>\n'
    ) in prompt


def test_a_result_may_be_empty_or_missing(client: TestClient, engine: FakeEngine) -> None:
    for result in ({}, {"content": None}, {"content": ""}):
        message = {"role": "tool", "tool_call_id": "c1", **result}
        assert post(client, messages=[*HISTORY[:2], message]).status_code == 200
        assert '<tool_response name="get_weather">\n\n</tool_response>' in engine.prompt


def test_history_reaches_the_prompt_without_tools_in_the_request(
    client: TestClient, engine: FakeEngine
) -> None:
    post(client, messages=HISTORY)
    assert CALL in engine.prompt
    assert "Sunny" in engine.prompt
    assert "You can call" not in engine.prompt


@pytest.mark.parametrize(
    "arguments", ["[" * 1500, '{"a":' * 200 + "1" + "}" * 200, '{"a": "\\ud800"}', "no JSON"]
)
def test_arguments_without_usable_json_stay_text(
    client: TestClient, engine: FakeEngine, arguments: str
) -> None:
    function = {"name": "look", "arguments": arguments}
    for fields in (
        {"tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"function_call": function},
    ):
        call = {"role": "assistant", **fields}
        ask(client, messages=[{"role": "user", "content": "hi"}, call])
        assert arguments in engine.prompt


def test_the_older_form_of_calls_reaches_the_prompt(client: TestClient, engine: FakeEngine) -> None:
    function_call = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "function_call": function_call},
        {"role": "function", "name": "get_weather", "content": "Sunny"},
    ]
    post(client, messages=messages)
    assert CALL in engine.prompt
    assert '<tool_response name="get_weather">\nSunny\n</tool_response>' in engine.prompt


def test_a_template_that_knows_tools_gets_them(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.tokenizer = ByteTokenizer(chat_template=TOOL_TEMPLATE + "{# <tool_call> #}")
    post(new_client(), tools=[WEATHER, SQL], messages=HISTORY)
    prompt = engine.prompt
    assert 'TOOLS [{"type": "function", "function": {"name": "get_weather"' in prompt
    assert 'CALL get_weather {"city": "Rome"}' in prompt
    assert "tool get_weather: Sunny" in prompt
    assert 'assistant : <custom_tool_call name="sql">' in prompt
    assert "You can call these tools, which take plain text" in prompt
    assert "You can call these functions" not in prompt


def test_the_flag_chooses_the_format(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(tool_format="llama_json")
    engine.script = text_script('{"name": "get_weather", ', '"parameters": {"city": "Rome"}}')
    message = post(client, tools=[WEATHER]).json()["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    assert '{"name": "FUNCTION", "parameters": ' in engine.prompt


def test_the_form_of_the_answer_is_shown_unless_switched_off(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    response_format = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    post(new_client(), response_format=response_format, messages=messages)
    instruction = "Answer with JSON and nothing else. It must follow this JSON schema 'thing':"
    assert f"Be brief.\n\n{instruction}\n{json.dumps(schema)}<|im_end|>" in engine.prompt
    assert json.loads(grammar_of(engine)) == schema
    post(new_client(schema_in_prompt=False), response_format=response_format, messages=messages)
    assert "schema" not in engine.prompt
    assert json.loads(grammar_of(engine)) == schema


def test_response_format_and_structured_outputs_exclude_each_other(client: TestClient) -> None:
    response = post(
        client, response_format={"type": "json_object"}, structured_outputs={"regex": "a"}
    )
    assert error_of(response)["param"] == "structured_outputs"
    for value in ({"regex": "a", "choice": ["b"]}, {"whitespace": 1}):
        response = post(client, structured_outputs=value)
        assert error_of(response)["param"] == "structured_outputs"
    for value in ({}, None):
        assert post(client, structured_outputs=value).status_code == 200


THINK = (
    "assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n"
    "{% else %}<think>\n\n</think>\n\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n", THINK)


def thinking_client(new_client: ClientFactory, engine: FakeEngine, **settings: Any) -> TestClient:
    engine.tokenizer = ByteTokenizer(chat_template=THINKING)
    return new_client(**settings)


def test_reasoning_is_split_off(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = thinking_client(new_client, engine)
    engine.script = text_script("Let me", " see.", "\n</think>", "\n\n", "Four.")
    answer = post(client).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == message["reasoning"] == "Let me see."
    assert message["content"] == "Four."
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    assert engine.requests[-1].params.reasoning is None


def test_a_grammar_and_a_budget_know_where_reasoning_ends(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = thinking_client(new_client, engine)
    post(client, response_format={"type": "json_object"}, thinking_budget=7)
    reasoning = engine.requests[-1].params.reasoning
    assert reasoning is not None
    assert (reasoning.start, reasoning.end) == ("<think>", "</think>")
    assert reasoning.starts_open
    assert reasoning.budget == 7


def test_reasoning_effort_none_switches_thinking_off(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = thinking_client(new_client, engine)
    engine.script = text_script("Four.")
    answer = post(client, reasoning_effort="none", thinking_budget=7).json()
    assert answer["choices"][0]["message"]["content"] == "Four."
    assert "reasoning" not in answer["choices"][0]["message"]
    assert "</think>" in engine.prompt
    assert engine.requests[-1].params.reasoning is None
    post(client, reasoning_effort="high")
    assert "</think>" not in engine.prompt


def test_reasoning_before_a_call(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = thinking_client(new_client, engine)
    engine.script = text_script("Hm, <tool_call>?</think>\n", CALL)
    message = post(client, tools=[WEATHER]).json()["choices"][0]["message"]
    assert message["reasoning_content"] == "Hm, <tool_call>?"
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


def test_reasoning_can_be_left_in_the_content(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = thinking_client(new_client, engine, reasoning=False)
    engine.script = text_script("Hm.</think>Four.")
    assert post(client).json()["choices"][0]["message"]["content"] == "Hm.</think>Four."


def test_a_budget_without_reasoning_is_a_400(client: TestClient) -> None:
    response = post(client, thinking_budget=7)
    assert error_of(response)["param"] == "thinking_budget"
    assert error_of(response)["code"] == "unsupported_parameter"


def test_stop_strings_count_after_the_reasoning(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = thinking_client(new_client, engine)
    post(client, stop="\n")
    assert engine.stop_rules.scope == StopScope(("</think>",))
    post(client, stop="\n", reasoning_effort="none")
    assert engine.stop_rules.scope is None
    post(thinking_client(new_client, engine, reasoning=False), stop="\n")
    assert engine.stop_rules.scope is None
    engine.tokenizer = ByteTokenizer(chat_template=CHATML + "{# <think></think> #}")
    post(new_client(), stop="\n")
    assert engine.stop_rules.scope == StopScope(("</think>",), unless="<think>")


@pytest.mark.parametrize("fields", [{"tools": [WEATHER]}, {"functions": [WEATHER["function"]]}])
def test_an_incomplete_call_has_finish_reason_stop(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    engine.script = text_script(CALL[:-20])
    choice = ask(client, **fields)["choices"][0]
    assert choice["finish_reason"] == "stop"
    chunks = stream(client, **fields)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
