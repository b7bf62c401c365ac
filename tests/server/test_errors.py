"""Requests that fail, and the error answers that they get."""

import gzip
import json
from codecs import BOM_UTF8
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import (
    GRAMMAR_FAILED,
    EngineDeadError,
    GrammarError,
    InvalidParamsError,
    PromptTooLongError,
)
from stonechat_server.errors import APIError, to_api_error, unwrap
from stonechat_server.messages_api.request import MessagesRequest
from stonechat_server.request.body import parse_request
from tests.server.bodies import URL, body, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output

USER = {"role": "user", "content": "hi"}
DEEP = '{"not":' * 500 + "{}" + "}" * 500
NO_TEXT = [{"role": "user", "content": [{"type": "text"}]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": NO_TEXT}, "messages[0].content[0].text"),
        ({"messages": [USER | {"tool_calls": ["a"]}]}, "messages[0].tool_calls"),
        ({"messages": [USER | {"tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"messages": [USER | {"function_call": 5}]}, "messages[0].function_call"),
        ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": DEEP}}, "structured_outputs.json"),
        ({"model": 5}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"max_completion_tokens": 0, "max_tokens": 5}, "max_completion_tokens"),
        ({"n_predict": 0}, "n_predict"),
        ({"temperature": 10**400}, "temperature"),
        ({"thinking_budget": 2**31}, "thinking_budget"),
        ({"repetition_penalty": 1e-40}, "repetition_penalty"),
        ({"repeat_penalty": 0.001}, "repeat_penalty"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop": ["a"] * 65}, "stop"),
        (
            {"tools": [{"type": "function", "function": {"name": "x" * 129}}]},
            "tools[0].function.name",
        ),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"²": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_usage": 3}, "stream": True}, "stream_options.include_usage"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"stop_token_ids": [256]}, "stop_token_ids[0]"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"safety_identifier": "x" * 65}, "safety_identifier"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools[0].function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": 1}}]},
            "tools[0].function.description",
        ),
        ({"prediction": {"type": "content", "content": 1}}, "prediction.content"),
        (
            {"prediction": {"type": "content", "content": [{"type": "text", "text": 1}]}},
            "prediction.content[0].text",
        ),
    ],
)  # fmt: skip
def test_bad_values_are_a_400_that_names_the_parameter(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    response = post(client, **fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert not engine.requests


def call_of(**call: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "tool_calls": [{"id": "a", **call}]}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": [{"role": None, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": call_of(type="function", function=None)},
            "messages[1].tool_calls[0].function",
        ),
        (
            {"messages": call_of(function={"name": None})},
            "messages[1].tool_calls[0].function.name",
        ),
        ({"tools": [{"type": None, "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": None}}]}, "tools[0].function.name"),
        ({"tool_choice": {"type": "function", "function": None}}, "tool_choice.function"),
        ({"response_format": {"type": None}}, "response_format.type"),
        ({"prediction": {"type": "content", "content": None}}, "prediction.content"),
        ({"thinking": {"type": None}}, "thinking.type"),
    ],
)
def test_null_counts_as_left_out_at_any_depth(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(client, **fields))
    assert (error["code"], error["param"]) == ("missing_required_parameter", param)


@pytest.mark.parametrize("fields", [{"stop": [None]}, {"messages": [None]}, {"tools": [None]}])
def test_null_in_a_list_is_of_the_wrong_type(client: TestClient, fields: dict[str, Any]) -> None:
    assert error_of(post(client, **fields))["code"] == "invalid_type"


def test_pairs_of_metadata_may_be_null(client: TestClient) -> None:
    response = post(client, metadata={"a": "b", "c": None})
    assert response.json()["metadata"] == {"a": "b"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"stop": ["a"] * 65}, "at most 64 items"),
        ({"messages": [{"role": "user", "content": []}]}, "at least 1 item"),
        ({"prediction": {"type": "content", "content": []}}, "at least 1 item"),
        ({"stop": 5}, "a valid string"),
        ({"max_tokens": "5"}, "a valid integer"),
        ({"max_tokens": 1.5}, "a valid integer"),
        ({"n_predict": -2}, "greater than or equal to 1"),
        ({"response_format": {"type": "xml"}}, "be 'text', 'json_object' or 'json_schema'."),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"type": "", "function": None}]}]},
            "should be 'function' or 'custom'.",
        ),
    ],
)
def test_of_several_forms_the_one_that_was_meant_is_explained(
    client: TestClient, fields: dict[str, Any], problem: str
) -> None:
    assert problem in error_of(post(client, **fields))["message"]


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "text", "text": "hi", "cache_control": 1}, "cache_control"),
        ({"type": "text"}, "text"),
        ({"type": "document", "source": {"type": "text", "text": "x"}}, "source.data"),
        ({"type": "document", "source": {"type": "text", "text": "x", "data": 1}}, "source.data"),
    ],
)
def test_the_kind_of_an_object_is_no_key_in_the_path(block: dict[str, Any], param: str) -> None:
    """The kind may be the name of a key, too."""
    body = {"max_tokens": 1, "messages": [{"role": "user", "content": [block]}]}
    with pytest.raises(APIError) as error_info:
        parse_request(json.dumps(body).encode(), MessagesRequest)
    assert error_info.value.param == f"messages[0].content[0].{param}"


@pytest.mark.parametrize("document", [{"model": "tiny-test"}, {"messages": None}, {}])
def test_messages_are_required(client: TestClient, document: dict[str, Any]) -> None:
    error = error_of(client.post(URL, json=document))
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")
    assert error["message"] == "Missing required parameter: 'messages'."


def test_a_bound_is_named(client: TestClient) -> None:
    error = error_of(post(client, max_tokens=0))
    assert "greater than or equal to 1" in error["message"]
    error = error_of(post(client, repetition_penalty=1e-40))
    assert "greater than or equal to 0.01" in error["message"]


@pytest.mark.parametrize("key", ["a", "256", "-1", "1.0", "", "²", "9" * 5000])
def test_a_bad_key_of_logit_bias_is_explained(client: TestClient, key: str) -> None:
    error = error_of(post(client, logit_bias={key: 1}))
    assert error["param"] == "logit_bias"
    assert error["message"].startswith(f"Invalid 'logit_bias': {key[:20]!r} is not a token id")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model": "tiny-test", "messages": [{"role": "user", "content": "\xff"}]}',
        b'{"model": "tiny-test", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny-test", "temperature": NaN, "messages": []}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_invalid_json_is_a_400(client: TestClient, content: bytes) -> None:
    response = client.post(URL, content=content)
    assert response.status_code == 400
    error_of(response)


def test_a_byte_order_mark_is_passed_over(client: TestClient) -> None:
    content = json.dumps(body()).encode()
    for before in (b"", b" \r\n"):
        assert client.post(URL, content=BOM_UTF8 + before + content).status_code == 200
    empty = error_of(client.post(URL, content=b""))
    for wrong in (BOM_UTF8, BOM_UTF8 + b" \r\n"):
        assert error_of(client.post(URL, content=wrong)) == empty
    assert error_of(client.post(URL, content=BOM_UTF8 + b"[]"))["code"] == "invalid_type"
    for wrong in (BOM_UTF8 * 2, BOM_UTF8 * 50_000 + content, content.decode().encode("utf-16")):
        assert error_of(client.post(URL, content=wrong))["code"] == "invalid_json"


def test_a_compressed_body_is_named(client: TestClient) -> None:
    content = gzip.compress(json.dumps(body()).encode())
    response = client.post(URL, content=content, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "identity")
    assert "compressed" in error_of(response)["message"]


@pytest.mark.parametrize("content", [b"[]", b"5", b"null", b'"x"'])
def test_json_that_is_not_an_object_is_a_400(client: TestClient, content: bytes) -> None:
    response = client.post(URL, content=content)
    assert response.status_code == 400
    assert error_of(response)["param"] is None


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    ],
)
def test_other_media_are_refused_by_name(client: TestClient, part: dict[str, Any]) -> None:
    text = {"type": "text", "text": "what is this?"}
    response = post(client, messages=[{"role": "user", "content": [text, part]}])
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("messages[0].content[1]", "unsupported_parameter")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_an_error_with_the_numbers(client: TestClient, stream: bool) -> None:
    long = [{"role": "user", "content": "x" * 5000}]
    response = post(client, messages=long, stream=stream)
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert "4096" in error["message"]
    assert "5050" in error["message"]


def test_unknown_model(client: TestClient) -> None:
    response = post(client, model="gpt-9")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    assert client.get("/v1/models/gpt-9").status_code == 404


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/nothing", 404),
    ("POST", "/v1/nothing", 404),
    ("GET", URL, 405),
    ("DELETE", "/v1/models", 405),
])  # fmt: skip
def test_unknown_routes_and_methods(
    client: TestClient, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    error_of(response)
    assert response.headers["x-request-id"]


def test_large_bodies_are_a_413(new_client: ClientFactory) -> None:
    client = new_client(max_body_size=1000, max_images_size=1)
    message = {"role": "user", "content": "x" * 1000}
    assert post(client, messages=[message]).status_code == 413
    chunked = client.post(URL, content=(b" " * 400 for _ in range(4)))
    assert chunked.status_code == 413
    error_of(chunked)
    assert post(client).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (GrammarError("no such thing"), 400, "invalid_grammar"),
        (EngineDeadError("secret"), 503, "engine_dead"),
        (RuntimeError("secret"), 500, "server_error"),
    ],
)
def test_errors_before_the_first_output_are_http_errors(
    client: TestClient,
    engine: FakeEngine,
    error: Exception,
    status: int,
    code: str,
    stream: bool,
) -> None:
    engine.script = lambda request: [error]
    response = post(client, stream=stream)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert error_of(response)["code"] == code
    assert "secret" not in response.text


def test_a_grammar_that_fails_later_is_the_clients_error(
    client: TestClient, engine: FakeEngine
) -> None:
    for reason, status, code in (
        (GRAMMAR_FAILED + "too many states", 400, "invalid_grammar"),
        ("secret", 500, "server_error"),
    ):
        engine.script = lambda request, reason=reason: [
            output(request, delta("a")),
            output(request, error=reason),
        ]
        response = post(client)
        assert response.status_code == status
        assert error_of(response)["code"] == code
        assert "secret" not in response.text
        streamed = post(client, stream=True)
        assert streamed.status_code == 200
        last = json.loads(streamed.text.strip().rpartition("data: ")[2])
        assert last["error"]["code"] == code


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_a_grammar_error_names_its_param(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    for script in (
        lambda request: [GrammarError("nothing can follow")],
        lambda request: [output(request, error=GRAMMAR_FAILED + "too many states")],
    ):
        engine.script = script
        assert error_of(post(client, **fields))["param"] == param


def test_health_is_503_once_the_engine_is_dead(client: TestClient, engine: FakeEngine) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
    engine.is_alive = False
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


def test_errors_of_the_engine_are_answers() -> None:
    refused = to_api_error(InvalidParamsError("top_k", "top_k must not be negative"))
    assert refused is not None
    assert (refused.status, refused.param) == (400, "top_k")
    too_long = to_api_error(PromptTooLongError(200, 128))
    assert too_long is not None
    assert (too_long.status, too_long.code) == (400, "context_length_exceeded")
    dead = to_api_error(EngineDeadError("gone"))
    assert dead is not None
    assert dead.status == 503
    assert to_api_error(ZeroDivisionError()) is None


def test_an_exception_is_taken_out_of_groups_of_one() -> None:
    error = ValueError("x")
    assert unwrap(error) is error
    assert unwrap(ExceptionGroup("outer", [ExceptionGroup("inner", [error])])) is error
    several = ExceptionGroup("two", [error, KeyError("y")])
    assert unwrap(ExceptionGroup("outer", [several])) is several
