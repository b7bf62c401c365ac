"""Requests to `/v1/responses`: what reaches the prompt and the engine, and what is refused."""

import json
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.responses_api.fields import FIELDS
from stonechat_server.responses_api.marks import ENCODED_PREFIX, decode_reasoning, encode_reasoning
from stonechat_server.responses_api.reading import SAME, TRANSLATED
from stonechat_server.responses_api.request import ResponsesRequest
from stonechat_server.responses_api.tool_reading import read_tools
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.bodies import error_of
from tests.server.bodies import post as post_chat
from tests.server.fake_engine import FakeEngine
from tests.server.messages_api.scripts import call, text_script
from tests.server.responses_api.answers import (
    SHELL,
    WEATHER,
    ask,
    both,
    custom_call,
    post,
)

FUNCTION = {"type": "function", "function": {k: v for k, v in WEATHER.items() if k != "type"}}
CUSTOM = {"type": "custom", "custom": {k: v for k, v in SHELL.items() if k != "type"}}
USER = {"role": "user", "content": "hi"}


def prompt(client: TestClient, engine: FakeEngine, **fields: Any) -> str:
    ask(client, **fields)
    return engine.prompt


def chat_prompt(client: TestClient, engine: FakeEngine, **fields: Any) -> str:
    response = post_chat(client, **fields)
    assert response.status_code == 200, response.text
    return engine.prompt


def test_every_field_is_in_the_table() -> None:
    assert set(ResponsesRequest.model_fields) == set(FIELDS)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (USER, USER),
        ({"type": "message", "role": "user", "content": "hi", "id": "msg_1", "status": None}, USER),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "a"},
                    {"type": "input_text", "text": "b"},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
        ),
        ({"role": "system", "content": "s"}, {"role": "system", "content": "s"}),
        (
            {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {"role": "developer", "content": "d"},
        ),
        ({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a"}),
        (
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}],
            },
        ),
    ],
)
def test_messages_are_those_of_chat(
    client: TestClient, engine: FakeEngine, item: Any, message: Any
) -> None:
    expected = chat_prompt(client, engine, messages=[USER, message])
    assert prompt(client, engine, input=[USER, item]) == expected


def test_a_kept_answer_is_given_back_as_in_chat(client: TestClient, engine: FakeEngine) -> None:
    """Both endpoints' answers, given back with the results of the calls, make the same prompt."""
    tools = {"tools": [WEATHER, SHELL]}
    chat_tools = {"tools": [FUNCTION, CUSTOM]}
    engine.script = text_script(
        "<think>hm</think>I look.\n" + call("get_weather", city="Rome") + custom_call("shell", "ls")
    )
    message = post_chat(client, **chat_tools).json()["choices"][0]["message"]
    for include in ([], ["reasoning.encrypted_content"]):
        items = ask(client, include=include, **tools)["output"]
        assert [item["type"] for item in items] == [
            *("reasoning", "message", "function_call", "custom_tool_call")
        ]
        for item, chat_call in zip(items[2:], message["tool_calls"], strict=True):
            item["call_id"] = chat_call["id"]  # ids are random
        ids = [item["call_id"] for item in items[2:]]
        results = [
            {"type": "function_call_output", "call_id": ids[0], "output": "sunny"},
            {
                "type": "custom_tool_call_output",
                "call_id": ids[1],
                "output": [{"type": "input_text", "text": "a.py"}],
            },
        ]
        chat_results = [
            {"role": "tool", "tool_call_id": ids[0], "content": "sunny"},
            {"role": "tool", "tool_call_id": ids[1], "content": "a.py"},
        ]
        messages = [USER, message, *chat_results]
        expected = chat_prompt(client, engine, messages=messages, **chat_tools)
        assert "<think>hm</think>" in expected
        assert "sunny" in expected
        assert prompt(client, engine, input=[USER, *items, *results], **tools) == expected


def test_reasoning_is_taken_from_any_of_its_places(client: TestClient, engine: FakeEngine) -> None:
    content = [{"type": "reasoning_text", "text": "con"}, {"type": "reasoning_text", "text": "t"}]
    summary = [{"type": "summary_text", "text": "sum"}]
    for reasoning, text in [
        ({"content": content, "summary": summary}, "con\nt"),
        ({"content": None, "summary": summary}, "sum"),
        ({"content": content, "encrypted_content": encode_reasoning("enc 👋")}, "enc 👋"),
        ({"summary": summary, "encrypted_content": "gAAAAB"}, "sum"),
    ]:
        item = {"type": "reasoning", "id": "rs_1", "summary": []} | reasoning
        items = [USER, item, {"role": "assistant", "content": "a"}, USER]
        assert f"<think>{text}</think>\na<|im_end|>" in prompt(client, engine, input=items)


def test_encrypted_reasoning_of_another_server_is_named(
    client: TestClient, engine: FakeEngine
) -> None:
    item = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAB"}
    response = post(client, input=[USER, item, {"role": "assistant", "content": "a"}, USER])
    assert response.headers["x-ignored-params"] == "input[1].encrypted_content"
    assert "<think>" not in engine.prompt
    without = prompt(client, engine, input=[USER, USER])
    assert prompt(client, engine, input=[USER, item, USER]) == without


@pytest.mark.parametrize(
    "content",
    ["", "x", ENCODED_PREFIX, ENCODED_PREFIX + "?", ENCODED_PREFIX + "_w==", ENCODED_PREFIX + "é"],
)
def test_other_texts_are_not_encrypted_reasoning(content: str) -> None:
    assert not decode_reasoning(content)


def test_neighbouring_answers_stay_apart(client: TestClient, engine: FakeEngine) -> None:
    answers = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    expected = chat_prompt(client, engine, messages=[USER, *answers])
    assert prompt(client, engine, input=[USER, *answers]) == expected


def test_calls_with_results_between_them_stay_apart(client: TestClient, engine: FakeEngine) -> None:
    items: list[Any] = []
    messages: list[Any] = []
    for i in range(2):
        arguments = f'{{"city": "{i}"}}'
        items += [
            {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": arguments},
            {"type": "function_call_output", "call_id": f"c{i}", "output": "ok"},
        ]
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": f"c{i}", "type": "function", "function": function}]
        messages += [
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": f"c{i}", "content": "ok"},
        ]
    expected = chat_prompt(client, engine, messages=[USER, *messages])
    assert prompt(client, engine, input=[USER, *items]) == expected


@pytest.mark.parametrize(
    ("fields", "chat_fields"),
    [
        ({"max_output_tokens": 7}, {"max_completion_tokens": 7}),
        ({"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "top_p": 0.5}),
        ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        (
            {"text": {"format": {"type": "json_object"}}},
            {"response_format": {"type": "json_object"}},
        ),
        (
            {
                "text": {
                    "format": {
                        "type": "json_schema",
                        "name": "n",
                        "schema": {"type": "integer"},
                        "strict": True,
                    }
                }
            },
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "integer"}, "strict": True},
                }
            },
        ),
        ({"tools": [WEATHER, SHELL]}, {"tools": [FUNCTION, CUSTOM]}),
        ({"tools": [{**SHELL, "format": {"type": "text"}}]}, {"tools": [CUSTOM]}),
        ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": [FUNCTION], "tool_choice": "none"}),
        (
            {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False},
            {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": [WEATHER, SHELL], "tool_choice": {"type": "custom", "name": "shell"}},
            {
                "tools": [FUNCTION, CUSTOM],
                "tool_choice": {"type": "custom", "custom": {"name": "shell"}},
            },
        ),
        (
            {
                "tools": [WEATHER, SHELL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "get_weather"}],
                },
            },
            {
                "tools": [FUNCTION, CUSTOM],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                    },
                },
            },
        ),
        (
            {
                "tools": [
                    {
                        "type": "custom",
                        "name": "sql",
                        "format": {"type": "grammar", "syntax": "regex", "definition": "a+"},
                    }
                ]
            },
            {
                "tools": [
                    {
                        "type": "custom",
                        "custom": {
                            "name": "sql",
                            "format": {
                                "type": "grammar",
                                "grammar": {"syntax": "regex", "definition": "a+"},
                            },
                        },
                    }
                ]
            },
        ),
        *(
            ({name: value}, {name: value})
            for name, value in {
                "top_k": 3,
                "min_p": 0.1,
                "seed": 5,
                "stop": ["x"],
                "min_tokens": 2,
                "repetition_penalty": 1.5,
                "chat_template_kwargs": {"add_generation_prompt": False},
                "structured_outputs": {"regex": "a+"},
                "guided_choice": ["a", "b"],
                "enable_thinking": False,
                "max_tokens": 5,
                "continue_final_message": False,
            }.items()
        ),
    ],
)
def test_options_do_what_they_do_in_chat(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], chat_fields: dict[str, Any]
) -> None:
    engine.script = text_script("{}")
    expected = chat_prompt(client, engine, **chat_fields)
    expected_params = engine.requests[-1].params
    assert prompt(client, engine, **fields) == expected
    assert engine.requests[-1].params == expected_params


def test_tools_in_a_namespace_are_called_by_both_names(
    client: TestClient, engine: FakeEngine
) -> None:
    namespace = {
        "type": "namespace",
        "name": "crm",
        "description": "The customers",
        "tools": [{"type": "function", "name": "find", "description": "Finds one"}, SHELL],
    }
    fields: dict[str, Any] = {"tools": [WEATHER, namespace]}
    engine.script = text_script(call("crm__find") + call("get_weather"))
    answer = both(client, **fields)
    first, second = answer["output"]
    assert (first["namespace"], first["name"]) == ("crm", "find")
    assert "namespace" not in second
    assert answer["tools"][1] == namespace
    assert '"description": "The customers\\n\\nFinds one"' in engine.prompt
    assert '"name": "find"' not in engine.prompt
    result = {"type": "function_call_output", "call_id": first["call_id"], "output": "x"}
    assert '"name": "crm__find"' in prompt(client, engine, input=[USER, first, result], **fields)
    choice = {"type": "function", "name": "find"}
    assert ask(client, tool_choice=choice, **fields)["tool_choice"] == choice


def test_long_namespaces_stay_apart(client: TestClient, engine: FakeEngine) -> None:
    """The model sees names of at most 64 characters, and the client gets its own ones."""
    groups = ["n" * 60 + "1", "n" * 60 + "2", "m" * 64]
    names = ["search", "s" * 60]
    tools = [
        {
            "type": "namespace",
            "name": group,
            "description": "A group",
            "tools": [{**WEATHER, "name": name} for name in names],
        }
        for group in groups
    ]
    seen = [tool.function.name for tool in read_tools(_parsed(tools), None).tools]
    assert len(set(seen)) == 6
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in seen)
    assert seen[0].startswith("n" * 40)
    assert seen[0].endswith("__search")
    for i, name in enumerate(seen):
        engine.script = text_script(call(name, city="Ulm"))
        (item,) = ask(client, tools=tools)["output"]
        assert (item["namespace"], item["name"]) == (groups[i // 2], names[i % 2])
        result = {"type": "function_call_output", "call_id": item["call_id"], "output": "x"}
        assert f'"name": "{name}"' in prompt(client, engine, input=[USER, item, result])


def _parsed(tools: list[Any]) -> list[Any]:
    return ResponsesRequest.model_validate({"input": "x", "tools": tools}).tools or []


def test_a_tool_in_a_namespace_may_be_chosen_by_its_own_name() -> None:
    function = {"type": "function", "name": "f"}
    groups = [{"type": "namespace", "name": name, "tools": [function]} for name in "ab"]
    tools = read_tools(_parsed(groups), None)
    assert [tool.function.name for tool in tools.tools] == ["a__f", "b__f"]
    assert tools.visible_name("f") == "a__f"


def test_fields_of_both_endpoints_take_the_same_values() -> None:
    """They are passed on without another check."""
    for name in SAME - TRANSLATED:
        own, chats = ResponsesRequest.model_fields[name], ChatCompletionRequest.model_fields[name]
        assert own.annotation == chats.annotation, name
        assert repr(own.metadata) == repr(chats.metadata), name


def test_codex_search_is_left_out_and_named(client: TestClient, engine: FakeEngine) -> None:
    for access in (True, False):
        search = {"type": "web_search", "external_web_access": access}
        response = post(client, tools=[WEATHER, search])
        assert response.headers["x-ignored-params"] == "tools[1]"
        assert [tool["name"] for tool in response.json()["tools"]] == ["get_weather"]
        assert "web_search" not in engine.prompt
        assert error_of(post(client, tools=[search]))["param"] == "tools[0]"


def test_tools_in_items_are_offered_beside_the_others(
    client: TestClient, engine: FakeEngine
) -> None:
    """As Codex lists its own. It repeats the item in each request."""
    group = {"type": "namespace", "name": "functions", "description": "Own", "tools": [SHELL]}
    searches = [
        {"type": "web_search", "external_web_access": False},
        {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
    ]
    item = {"type": "additional_tools", "role": "developer", "tools": [group, *searches]}
    expected = prompt(client, engine, tools=[WEATHER, group], input=[USER])
    for items in ([item, USER], [item, USER, item]):
        response = post(client, tools=[WEATHER], input=items)
        assert response.status_code == 200, response.text
        assert engine.prompt == expected
        ignored = response.headers["x-ignored-params"].split(", ")
        assert ignored[:2] == ["input[0].tools[1]", "input[0].tools[2]"]
    again = {**item, "tools": [group, WEATHER]}
    assert prompt(client, engine, tools=[], input=[again, item, USER]) == prompt(
        client, engine, tools=[group, WEATHER], input=[USER]
    )
    first = ask(client, input=[item, USER], store=True)
    prompt(client, engine, input=[item, USER], previous_response_id=first["id"])
    assert engine.prompt.count("Runs a command") == 1
    listed = client.get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    assert [entry["type"] for entry in listed] == ["message", "additional_tools"]


def test_hosted_tools_in_items_are_refused(client: TestClient) -> None:
    tools = [WEATHER, {"type": "code_interpreter", "container": {"type": "auto"}}]
    item = {"type": "additional_tools", "role": "developer", "tools": tools}
    assert error_of(post(client, input=[item, USER]))["param"] == "input[0].tools[1]"
    only = {**item, "tools": [{"type": "tool_search", "execution": "client"}]}
    assert error_of(post(client, input=[only, USER]))["param"] == "input[0].tools[0]"
    many = [{**WEATHER, "name": f"f{i}"} for i in range(129)]
    error = error_of(post(client, input=[{**item, "tools": many}, USER]))
    assert "128 tools" in error["message"]


@pytest.mark.parametrize("key", ["call_id", "id"])
@pytest.mark.parametrize(
    ("kind", "given", "output"),
    [
        ("local_shell", {"action": {"command": ["ls"]}}, "a.txt"),
        ("shell", {"action": {"commands": ["ls"]}}, [{"stdout": "a"}]),
        ("apply_patch", {"operation": {"type": "delete_file"}}, None),
    ],
)
def test_a_call_of_another_service_is_shown_as_that_of_a_function(
    client: TestClient, engine: FakeEngine, kind: str, given: Any, output: Any, key: str
) -> None:
    theirs = {"type": f"{kind}_call", key: "c1", "status": "completed", **given}
    result = {"type": f"{kind}_call_output", key: "c1", "output": output}
    response = post(client, input=[USER, theirs, result])
    assert "x-ignored-params" not in response.headers
    seen, (arguments,) = engine.prompt, given.values()
    same: list[dict[str, Any]] = [
        {"type": "function_call", "name": kind, "arguments": json.dumps(arguments)},
        {"type": "function_call_output"},
    ]
    same[1]["output"] = output if isinstance(output, str) else json.dumps(output)
    assert seen == prompt(
        client, engine, input=[USER, *({**item, "call_id": "c1"} for item in same)]
    )


def test_what_another_service_ran_is_left_out_and_named(
    client: TestClient, engine: FakeEngine
) -> None:
    searches = [
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "x"}},
        {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {}},
        {"type": "mcp_list_tools", "server_label": "x", "tools": [{"name": "y"}]},
    ]
    plain = prompt(client, engine, input=[USER, USER])
    response = post(client, input=[USER, *searches, USER])
    assert response.headers["x-ignored-params"] == "input[1], input[2], input[3]"
    assert engine.prompt == plain
    items = client.get(f"/v1/responses/{response.json()['id']}/input_items").json()["data"]
    assert [item["type"] for item in reversed(items)][1:4] == [item["type"] for item in searches]
    ask(client, input=[USER], previous_response_id=response.json()["id"])
