"""What `/v1/responses` refuses, and what it names as having no effect."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.responses_api.fields import FIELDS
from stonechat_server.responses_api.request import ResponsesRequest
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.settings import Settings
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.responses_api.answers import WEATHER, post, texts_of

USER = {"role": "user", "content": "hi"}


SOUND = {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"n": 2}, "n"),
        ({"prompt_logprobs": 0}, "prompt_logprobs"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, "tools[1]"),
        ({"tools": [WEATHER, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1]"),
        ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "tools[0]"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0]"),
        ({"tools": [{"type": "image_generation"}]}, "tools[0]"),
        ({"tools": [{"type": "computer"}]}, "tools[0]"),
        ({"tools": [{"type": "local_shell"}]}, "tools[0]"),
        ({"tools": [WEATHER], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "mcp"}],
                },
            },
            "tool_choice.tools[0]",
        ),
        ({"input": [USER, {"type": "compaction", "encrypted_content": "x"}]}, "input[1]"),
        (
            {"input": [USER, {"role": "user", "content": [SOUND]}]},
            "input[1].content[0]",
        ),
        (
            {
                "input": [
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_text", "text": "a"}, SOUND],
                    }
                ]
            },
            "input[0].output[1]",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert f"'{param}'" in error["message"] or "text only" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input"),
        ({"input": [{}]}, "input[0].type"),
        ({"input": [{"role": "nobody", "content": "hi"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": 1}]}]},
            "input[0].content[0].text",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"input": [{"type": "sundry"}]}, "input[0].type"),
        ({"instructions": 1}, "instructions"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [WEATHER, {**WEATHER, "description": "x"}]}, "tools[1].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        (
            {
                "tools": [
                    {"type": "function", "name": "f", "parameters": {"not": {}}, "strict": True}
                ]
            },
            "tools[0].parameters",
        ),
        (
            {
                "tools": [
                    WEATHER,
                    {
                        "type": "namespace",
                        "name": "n",
                        "tools": [
                            {
                                "type": "custom",
                                "name": "f",
                                "format": {
                                    "type": "grammar",
                                    "syntax": "regex",
                                    "definition": "(a",
                                },
                            }
                        ],
                    },
                ]
            },
            "tools[1].tools[0].format.definition",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}},
            "tool_choice.name",
        ),
        (
            {
                "tools": [WEATHER],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "custom", "name": "x"}],
                },
            },
            "tool_choice.tools[0].name",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"pattern": "("}}}},
            "text.format.schema",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        (
            {"text": {"format": {"type": "json_object"}}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
        ),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5, "max_tokens": 6}, "max_output_tokens"),
        ({"max_output_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"truncation": "some"}, "truncation"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"thinking_budget": 5}, None),
    ],
)
def test_errors_name_what_the_client_sent(
    client: TestClient, fields: dict[str, Any], param: str | None
) -> None:
    response = post(client, **fields)
    if param is None:
        return
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert error["param"] == param
    for word in ("messages", "response_format", "json_schema.schema", "tools[0].function"):
        assert word not in error["message"]


def test_tools_in_the_form_of_chat_completions_are_explained(client: TestClient) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    group = {"type": "namespace", "name": "n", "tools": [tool]}
    choice = {"type": "function", "function": {"name": "f"}}
    for fields, param in (
        ({"tools": [tool]}, "tools[0].name"),
        ({"tools": [group]}, "tools[0].tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": choice}, "tool_choice.name"),
    ):
        error = error_of(post(client, **fields))
        assert (error["param"], error["code"]) == (param, "missing_required_parameter")
        assert error["message"].startswith(f"Missing required parameter: '{param}'. A tool is flat")


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "name": f"f{i}"} for i in range(129)],
        [{"type": "custom", "name": "f"} for _ in range(129)],
        [
            {
                "type": "namespace",
                "name": f"n{i}",
                "tools": [{"type": "custom", "name": f"f{j}"} for j in range(65)],
            }
            for i in range(2)
        ],
    ],
)
def test_too_many_tools_are_refused_first(client: TestClient, tools: list[Any]) -> None:
    """The check of each name of a choice, or of equal names, would come later."""
    choice = {"type": "function", "name": "absent"}
    error = error_of(post(client, tools=tools, tool_choice=choice))
    assert (error["param"], error["code"]) == ("tools", "invalid_value")
    assert error["message"] == "At most 128 tools are allowed, with those in namespaces."


def test_a_choice_among_too_many_tools(client: TestClient) -> None:
    names = [{"type": "function", "name": "f"} for _ in range(129)]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": names}
    error = error_of(post(client, tools=[WEATHER], tool_choice=choice))
    assert error["param"] == "tool_choice.tools"


@pytest.mark.parametrize(
    "items",
    [
        [{"type": "reasoning", "summary": []}],
        [{"type": "reasoning", "summary": [], "encrypted_content": "of another server"}],
        [{"type": "reasoning", "summary": []}, {"type": "reasoning", "encrypted_content": "x"}],
    ],
)
def test_input_without_anything_to_read_is_refused(
    client: TestClient, items: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    error = error_of(post(client, input=items))
    assert (error["param"], error["code"]) == ("input", "invalid_value")
    assert "ValidationError" not in caplog.text
    assert post(client, input=items, instructions="Be nice.").status_code == 200


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_output_tokens": 300_000}, "max_output_tokens"),
        ({"max_tokens": 300_000}, "max_tokens"),
        ({"max_completion_tokens": 300_000}, "max_completion_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_bound_of_log_probabilities(
    new_client: ClientFactory, engine: FakeEngine, fields: dict[str, Any], named: str, stream: bool
) -> None:
    """The last events of a stream repeat them, so a stream has the bound of a plain answer."""
    engine.model = model_info(max_model_len=1_000_000)
    client = new_client()
    error = error_of(post(client, top_logprobs=20, stream=stream, **fields))
    assert (error["param"], error["code"]) == ("top_logprobs", "request_too_large")
    assert error["message"].endswith(f": lower {named} to 52428.")
    assert post(client, top_logprobs=20, stream=stream).status_code == 200
    assert engine.requests[-1].params.max_tokens == 52428
    assert post(client, stream=stream, **fields).status_code == 200


def test_contradictions_of_reasoning_name_what_was_sent(client: TestClient) -> None:
    error = error_of(post(client, reasoning={"effort": "none", "enabled": True}))
    assert error["param"] == "reasoning.effort"
    assert error["message"] == (
        "'reasoning.effort' switches reasoning off, and 'reasoning.enabled' switches it on."
    )


def test_what_a_template_refuses_is_said_in_english(engine: FakeEngine) -> None:
    engine.tokenizer = ByteTokenizer(chat_template="{{ raise_exception('No, not these.') }}")
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        error = error_of(post(client))
    assert (error["param"], error["code"]) == ("input", "chat_template_error")
    assert error["message"] == "The chat template refuses these messages: No, not these."


def test_too_long_an_input_is_named(client: TestClient) -> None:
    error = error_of(post(client, input="x" * 5000))
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")


def test_too_many_items(new_client: ClientFactory) -> None:
    error = error_of(post(new_client(max_messages=2), input=[USER, USER, USER]))
    assert (error["param"], error["code"]) == ("input", "too_many_messages")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({}, None),
        ({"store": False, "truncation": "disabled", "background": False}, None),
        ({"store": True}, None),
        ({"client_metadata": {"a": "b"}, "store": True}, "client_metadata"),
        ({"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"context": "all_turns"}}, "reasoning.context"),
        ({"reasoning": {"context": "auto", "mode": "pro"}}, "reasoning.mode"),
        ({"include": ["message.output_text.logprobs", "file_search_call.results"]}, "include[1]"),
        ({"unknown": 1, "logprobs": True}, "unknown, logprobs"),
        ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"input": [{**USER, "phase": "commentary"}]}, "input[0].phase"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
        ),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            "stream_options.include_usage",
        ),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_named(
    client: TestClient, fields: dict[str, Any], names: str | None
) -> None:
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    assert response.headers.get("x-ignored-params", "").replace("%20", " ") == (names or "")


def test_unknown_fields_are_refused_if_set_so(new_client: ClientFactory) -> None:
    error = error_of(post(new_client(strict_params=True), input=[{**USER, "x": 1}]))
    assert (error["param"], error["code"]) == ("input[0].x", "unknown_parameter")


def test_null_is_the_same_as_leaving_a_field_out(client: TestClient) -> None:
    required = {"input", "model"}
    fields = dict.fromkeys(set(ResponsesRequest.model_fields) - required)
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers


def test_rejected_fields_are_all_tested() -> None:
    rejected = {name for name, note in FIELDS.items() if note.status is FieldStatus.REJECTED}
    assert rejected == {
        *("conversation", "background", "prompt"),
        *("context_management", "moderation", "n", "response_format"),
        *("prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids"),
    }


def test_the_unenforced_schema_is_named_by_its_own_path(client: TestClient) -> None:
    tool = {**WEATHER, "parameters": {"type": "object", "not": {"required": ["x"]}}}
    response = post(client, tools=[tool])
    assert response.headers["x-unenforced-schema"].startswith("tools[0].parameters")
    assert texts_of(response.json()["output"])
