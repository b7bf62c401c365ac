"""What a request becomes: the same prompt and parameters as the equal chat request."""

import json
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params
from fastapi.testclient import TestClient
from typing_extensions import get_annotations

from stonechat_server.access.auth import Identity
from stonechat_server.access.keys import ANONYMOUS
from stonechat_server.messages_api.endpoint import MessagesEndpoint
from stonechat_server.messages_api.fields import EXTENSIONS, FIELDS
from stonechat_server.messages_api.request import MessagesRequest
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server import bodies as chat
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import CHATML, FakeEngine
from tests.server.messages_api.answers import ask, count, error_of, post
from tests.server.messages_api.scripts import TEMPLATE, call, text_script
from tests.server.messages_api.test_answers import NOW, TOOLS, WEATHER

USER = {"role": "user", "content": "hi"}


def text(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text} | fields


def use(id: str, name: str, **input: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": input}


def result(id: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content} | fields


def function_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def function(tool: dict[str, Any]) -> dict[str, Any]:
    names = {"name": "name", "description": "description", "input_schema": "parameters"}
    return {
        "type": "function",
        "function": {names[key]: value for key, value in tool.items()},
    }


CONVERSATIONS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "system text": (
        {"system": "Be brief.", "messages": [USER]},
        [{"role": "system", "content": "Be brief."}, USER],
    ),
    "system blocks": (
        {
            "system": [text("One."), text("Two.", cache_control={"type": "ephemeral"})],
            "messages": [USER],
        },
        [{"role": "system", "content": [text("One."), text("Two.")]}, USER],
    ),
    "system in the middle": (
        {"messages": [USER, {"role": "system", "content": "Now."}, USER]},
        [USER, {"role": "system", "content": "Now."}, USER],
    ),
    "text blocks": (
        {"messages": [{"role": "user", "content": [text("a"), text("b", citations=None)]}]},
        [{"role": "user", "content": [text("a"), text("b")]}],
    ),
    "one role in a row": ({"messages": [USER, USER]}, [USER, USER]),
    "calls, results and thinking": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Both.", "signature": "foreign"},
                        {"type": "redacted_thinking", "data": "AAAA"},
                        text("I look."),
                        use("toolu_1", "get_weather", city="Rome"),
                        use("x:2", "now"),
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        text("And?"),
                        result("toolu_1", "sunny"),
                        result("x:2", [text("1"), text("2")]),
                    ],
                },
            ]
        },
        [
            USER,
            {
                "role": "assistant",
                "content": "I look.",
                "reasoning_content": "Both.",
                "tool_calls": [
                    function_call("call_1", "get_weather", '{"city": "Rome"}'),
                    function_call("x:2", "now", "{}"),
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "x:2", "content": "1\n2"},
            {"role": "user", "content": "And?"},
        ],
    ),
    "pieces of an answer's text": (
        {"messages": [USER, {"role": "assistant", "content": [text("a"), text("b")]}, USER]},
        [USER, {"role": "assistant", "content": "ab"}, USER],
    ),
    "failed calls": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [use("1", "now"), use("2", "now")]},
                {
                    "role": "user",
                    "content": [
                        result("1", "no clock", is_error=True),
                        result("2", "<tool_use_error>late</tool_use_error>", is_error=True),
                    ],
                },
            ]
        },
        [
            USER,
            {
                "role": "assistant",
                "tool_calls": [function_call("1", "now", "{}"), function_call("2", "now", "{}")],
            },
            {"role": "tool", "tool_call_id": "1", "content": "Error: no clock"},
            {
                "role": "tool",
                "tool_call_id": "2",
                "content": "<tool_use_error>late</tool_use_error>",
            },
        ],
    ),
    "documents and search results": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "document",
                            "title": "T",
                            "context": "C",
                            "source": {"type": "text", "media_type": "text/plain", "data": "D"},
                        },
                        {
                            "type": "document",
                            "source": {"type": "content", "content": [text("E"), text("F")]},
                        },
                        {
                            "type": "search_result",
                            "title": "U",
                            "source": "https://example.org",
                            "content": [text("G")],
                        },
                    ],
                }
            ]
        },
        [
            {
                "role": "user",
                "content": (
                    "C\n[Document: T]\nD\n[End of T]\n[Document]\nE\nF\n[End of document]\n"
                    "U\nhttps://example.org\nG"
                ),
            }
        ],
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_renders_like_the_equal_chat(
    client: TestClient, engine: FakeEngine, name: str
) -> None:
    fields, messages = CONVERSATIONS[name]
    ask(client, tools=TOOLS, **fields)
    prompt = engine.prompt
    chat.ask(client, messages=messages, tools=[function(WEATHER), function(NOW)])
    assert prompt == engine.prompt
    assert count(client, tools=TOOLS, **fields) == len(prompt.encode())


def test_an_answer_given_back_renders_like_in_chat(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(
        "<think>Look.</think>\nOne moment." + call("get_weather", city="Rome", days=[1, 2.50])
    )
    content = ask(client, tools=TOOLS)["content"]
    results = [result(b["id"], "sunny") for b in content if b["type"] == "tool_use"]
    messages = [USER, {"role": "assistant", "content": content}]
    ask(client, tools=TOOLS, messages=[*messages, {"role": "user", "content": results}])
    prompt = engine.prompt
    functions = [function(WEATHER), function(NOW)]
    message = chat.ask(client, tools=functions)["choices"][0]["message"]
    id = results[0]["tool_use_id"].replace("toolu_", "call_")
    message["tool_calls"][0]["id"] = id
    tool_message = {"role": "tool", "tool_call_id": id, "content": "sunny"}
    chat.ask(client, tools=functions, messages=[USER, message, tool_message])
    assert prompt == engine.prompt


def test_a_cut_call_given_back_is_the_same_text(client: TestClient, engine: FakeEngine) -> None:
    cut = use("toolu_1", "get_weather", INVALID_JSON='{"city": "Ro')
    messages = [USER, {"role": "assistant", "content": [cut]}, USER]
    ask(client, tools=TOOLS, messages=messages)
    prompt = engine.prompt
    calls = [function_call("call_1", "get_weather", '{"city": "Ro')]
    answer = {"role": "assistant", "tool_calls": calls}
    functions = [function(WEATHER), function(NOW)]
    chat.ask(client, tools=functions, messages=[USER, answer, USER])
    assert prompt == engine.prompt


def test_the_last_answer_is_continued(client: TestClient, engine: FakeEngine) -> None:
    ask(client, messages=[USER, {"role": "assistant", "content": [text("The answer is (")]}])
    assert engine.prompt.endswith("<|im_start|>assistant\nThe answer is (")


@pytest.mark.parametrize("content", [[], "", [use("1", "now")]])
def test_a_last_answer_without_text_ends_there(
    client: TestClient, engine: FakeEngine, content: Any
) -> None:
    ask(client, messages=[USER, {"role": "assistant", "content": content}], tools=TOOLS)
    assert engine.prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_sampling_fields_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    ask(
        client,
        **{"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 12},
        **{"stop_sequences": ["a", "b"], "seed": 3, "min_p": 0.1, "min_tokens": 2},
        **{"frequency_penalty": 1.0, "presence_penalty": -1.0, "repetition_penalty": 1.1},
        **{"logit_bias": {"65": 2.0}, "stop_token_ids": [9], "ignore_eos": True},
        **{"skip_special_tokens": False, "include_stop_str_in_output": True},
    )
    params = engine.requests[-1].params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (7, 0.5, 0.9, 12)
    assert params.stop is not None
    assert params.stop.strings == ("a", "b")
    assert (params.seed, params.min_p, params.min_tokens) == (3, 0.1, 2)
    assert (params.frequency_penalty, params.presence_penalty) == (1.0, -1.0)
    assert (params.repetition_penalty, params.logit_bias) == (1.1, {65: 2.0})
    assert (params.stop_token_ids, params.ignore_eos) == ((9,), True)
    assert (params.skip_special_tokens, params.include_stop_str_in_output) == (False, True)


def test_other_extensions(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(allow_request_templates=True)
    template = "{{ x }} {{ documents[0].text }} {{ reasoning_effort }}"
    ask(
        client,
        chat_template=template,
        chat_template_kwargs={"x": "X"},
        documents=[{"text": "D"}],
        reasoning_effort="minimal",
        prediction={"type": "content", "content": "Hello"},
        priority=3,
        cache_salt="salt",
    )
    assert engine.prompt == "X D minimal"
    request = engine.requests[-1]
    assert (request.priority, request.cache_salt) == (3, "salt")
    assert bytes(request.prediction_token_ids) == b"Hello"


TOOL_CHOICES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "auto"}, {"tool_choice": "auto"}),
    ({"type": "any"}, {"tool_choice": "required"}),
    ({"type": "none"}, {"tool_choice": "none"}),
    (
        {"type": "tool", "name": "now"},
        {"tool_choice": {"type": "function", "function": {"name": "now"}}},
    ),
    (
        {"type": "any", "disable_parallel_tool_use": True},
        {"tool_choice": "required", "parallel_tool_calls": False},
    ),
]


@pytest.mark.parametrize(("choice", "equal"), TOOL_CHOICES)
def test_tool_choices(
    client: TestClient, engine: FakeEngine, choice: dict[str, Any], equal: dict[str, Any]
) -> None:
    ask(client, tools=TOOLS, tool_choice=choice)
    chat.ask(client, max_tokens=100, tools=[function(WEATHER), function(NOW)], **equal)
    ours, theirs = engine.requests
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    assert ours.params == theirs.params


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
EQUAL_FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"output_config": {"format": FORMAT}}, {"response_format": FORMAT}),
    ({"output_format": FORMAT}, {"response_format": FORMAT}),
    ({"output_format": FORMAT, "output_config": {"format": FORMAT}}, {"response_format": FORMAT}),
    (
        {"structured_outputs": {"choice": ["a", "b"]}},
        {"structured_outputs": {"choice": ["a", "b"]}},
    ),
    (
        {"output_config": {"effort": "low"}},
        {"chat_template_kwargs": {"reasoning_effort": "low", "reasoning_strength": "low"}},
    ),
    (
        {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
        {"reasoning_effort": "low"},
    ),
    (
        {"output_config": {"effort": "low"}, "reasoning_effort": "low"},
        {"reasoning_effort": "low"},
    ),
    (
        {"output_config": {"effort": "low"}, "chat_template_kwargs": {"enable_thinking": False}},
        {
            "chat_template_kwargs": {
                "reasoning_effort": "low",
                "reasoning_strength": "low",
                "enable_thinking": False,
            }
        },
    ),
    ({"thinking": {"type": "adaptive"}}, {}),
    ({"thinking": {"type": "between_tools"}}, {}),
    ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
    (
        {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}},
        {"reasoning_effort": "none"},
    ),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"enable_thinking": True, "thinking_budget": 1024},
    ),
    ({"thinking_budget": 5}, {"thinking_budget": 5}),
]
REASONING_TEMPLATE = TEMPLATE + "{{ reasoning_effort }} {{ enable_thinking }}"


@pytest.mark.parametrize(("fields", "equal"), EQUAL_FIELDS)
def test_forms_and_reasoning(
    new_client: ClientFactory, engine: FakeEngine, fields: dict[str, Any], equal: dict[str, Any]
) -> None:
    engine.tokenizer.chat_template = REASONING_TEMPLATE
    client = new_client()
    ask(client, **fields)
    chat.ask(client, max_tokens=100, **equal)
    ours, theirs = engine.requests
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    assert ours.params == theirs.params


def test_a_budget_does_not_apply_without_reasoning(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.tokenizer.chat_template = CHATML
    client = new_client()
    response = post(client, thinking={"type": "enabled", "budget_tokens": 1024})
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-params"] == "thinking.budget_tokens"
    assert engine.requests[-1].params.reasoning is None
    assert error_of(post(client, thinking_budget=5))["message"].startswith("This model has no")


def test_reasoning_of_another_service_is_named(client: TestClient) -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "AAAA"},
        {"type": "thinking", "thinking": "", "signature": "EqQB"},
        {"type": "thinking", "thinking": "seen", "signature": "EqQB"},
        text("a"),
    ]
    response = post(client, messages=[USER, {"role": "assistant", "content": blocks}, USER])
    assert response.headers["x-ignored-params"] == (
        "messages[1].content[0].data, messages[1].content[1].signature"
    )


def test_the_user_is_counted(client: TestClient) -> None:
    body = {"messages": [USER], "max_tokens": 1, "metadata": {"user_id": "u"}}
    wire = MessagesRequest.model_validate(body)
    services = client.app.state.server  # type: ignore[attr-defined]
    identity = Identity(ANONYMOUS, "")
    assert MessagesEndpoint().read(wire, services, identity).request.user == "u"


def test_tools_reach_the_template_without_what_no_template_reads(
    client: TestClient, engine: FakeEngine
) -> None:
    tool = WEATHER | {"type": "custom", "cache_control": {"type": "ephemeral"}}
    ask(client, tools=[tool | {"eager_input_streaming": True, "strict": None}])
    assert f"TOOLS [{json.dumps(function(WEATHER))}]\n" in engine.prompt


def test_names_of_tools_may_have_128_characters(client: TestClient) -> None:
    ask(client, tools=[WEATHER | {"name": "m" * 128}])
    response = post(client, tools=[WEATHER | {"name": "m" * 129}])
    assert "tools[0].name" in error_of(response)["message"]


IGNORED: list[tuple[dict[str, Any], str]] = [
    ({"context_management": {"edits": [{"type": "compact_20260112"}]}}, "context_management"),
    ({"speed": "fast", "inference_geo": "us"}, "inference_geo, speed"),
    ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"output_config": {"task_budget": {"total": 1}}}, "output_config.task_budget"),
    (
        {"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}},
        "output_config.effort",
    ),
    ({"foo": 1, "messages": [USER | {"name": "x"}]}, "foo, messages[0].name"),
    ({"betas": ["x"], "fallbacks": [], "speed": "standard"}, "betas"),
]


@pytest.mark.parametrize(("fields", "names"), IGNORED)
def test_what_has_no_effect_is_named(
    client: TestClient, fields: dict[str, Any], names: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["x-ignored-params"] == names


def test_nothing_is_named_if_all_is_honoured(client: TestClient) -> None:
    response = post(
        client,
        service_tier="auto",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        thinking={"type": "adaptive", "display": "summarized"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers


def test_what_is_not_enforced_of_a_schema_is_named(client: TestClient) -> None:
    email = {"type": "string", "pattern": "(?=a)b"}
    schema = {"type": "object", "properties": {"email": email}}
    response = post(client, tools=[WEATHER | {"input_schema": schema}])
    name = "tools[0].input_schema.properties.email.pattern"
    assert response.headers["x-unenforced-schema"] == name


def test_the_table_has_every_field() -> None:
    own = set(MessagesRequest.model_fields)
    assert set(FIELDS) == own
    for params in (message_create_params, beta_params):
        theirs: set[str] = set()
        for base in params.MessageCreateParamsBase.__mro__:
            theirs |= get_annotations(base).keys()
        assert theirs - {"stream"} <= own


def test_extensions_mean_the_same_as_in_chat() -> None:
    for name in EXTENSIONS:
        ours, theirs = MessagesRequest.model_fields[name], ChatCompletionRequest.model_fields[name]
        assert repr(ours.annotation) == repr(theirs.annotation), name
        assert FIELDS[name].status is FieldStatus.HONOURED
