"""Every answer and event is what the published API descriptions say, on a scripted engine."""

import base64
import dataclasses
import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from stonechat_models import (
    EmbeddingInfo,
    EngineDeadError,
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    RequestOutput,
    TopLogprob,
)
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.openai_schema import Vendor, validate
from tests.server import fake_engine
from tests.server.fake_engine import FakeEngine, Script, delta, output, text_script

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>Well, it is me.</think>\n\n"


def logprob_script(request: GenerateRequest) -> list[Any]:
    """Every token has log-probabilities; the second character comes in halves."""
    pieces = [("a", b"a"), ("", "é".encode()[:1]), ("é", "é".encode()[1:]), ("b", b"b")]
    items = []
    for position, (text, token) in enumerate(pieces):
        top = TopLogprob(1, text, token, -0.5)
        entry = LogprobEntry(1, text, token, -0.5, (top, TopLogprob(2, "x", b"x", -3.0)))
        finish = FinishReason.STOP if position == len(pieces) - 1 else None
        piece = delta(text, finish=finish, logprobs=(entry,))
        items.append(output(request, piece, finished=finish is not None))
    return items


def length_script(request: GenerateRequest) -> list[Any]:
    return [output(request, delta("Hello", finish=FinishReason.LENGTH), finished=True)]


def stopped_script(request: GenerateRequest) -> list[Any]:
    piece = delta("He", finish=FinishReason.STOP, stop_reason="ll")
    return [output(request, piece, finished=True)]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def http(engine: FakeEngine) -> Iterator[TestClient]:
    """A client of a server whose model may think and call tools."""
    engine.tokenizer.chat_template = "{# <think></think> #}x"
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        yield client


def events(response: Any) -> list[Any]:
    """Return the data of each event of a stream."""
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n")]
    return [json.loads(line) for line in lines if line.startswith("{")]


SCHEMA = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
NAMED = {"name": "a", "schema": SCHEMA}
SQL = {"type": "custom", "name": "sql"}
FUNCTION = {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS}
SQL_CALL = '<tool_call>\n{"name": "sql", "arguments": {"input": "a"}}\n</tool_call>'
MODEL = {"model": "tiny-test"}
ASK = MODEL | {"messages": [{"role": "user", "content": "hi"}]}
TURNS = [
    {"role": "user", "content": "hi"},
    {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c1", "output": "warm"},
]
Case = tuple[Script, dict[str, Any]]

CHAT: dict[str, Case] = {
    "text": (text_script("Hello", " wörld", cached=2), {}),
    "choices": (text_script("Hello", "!"), {"n": 3}),
    "usage": (text_script("Hello", "!"), {"stream_options": {"include_usage": True}}),
    "logprobs": (logprob_script, {"logprobs": True, "top_logprobs": 2}),
    "reasoning": (text_script(THOUGHT, "Hello"), {}),
    "tools": (text_script(THOUGHT, CALL), {"tools": [{"type": "function", "function": FUNCTION}]}),
    "custom tool": (
        text_script(SQL_CALL),
        {"tools": [{"type": "custom", "custom": {"name": "sql"}}]},
    ),
    "JSON": (
        text_script('{"a"', ": 1}"),
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            }
        },
    ),
    "metadata": (text_script("a"), {"metadata": {"k": "v"}, "service_tier": "auto"}),
}
COMPLETIONS: dict[str, Case] = {
    "text": (text_script("Hello", " wörld", cached=2), {"prompt": "hi"}),
    "prompts": (text_script("Hello", "!"), {"prompt": ["a", "b"], "n": 2}),
    "tokens": (text_script("Hello", "!"), {"prompt": [[104, 105], [104]]}),
    "usage": (text_script("a"), {"prompt": "a", "stream_options": {"include_usage": True}}),
    "logprobs": (logprob_script, {"prompt": "hi", "logprobs": 2}),
    "echo": (text_script("Hello"), {"prompt": "hi", "echo": True}),
    "length": (length_script, {"prompt": "hi", "max_tokens": 1}),
}
RESPONSES: dict[str, Case] = {
    "text": (text_script("Hello", " wörld", cached=2), {"input": "hi"}),
    "turns": (text_script("Hello"), {"input": TURNS, "instructions": "Be brief."}),
    "logprobs": (
        logprob_script,
        {"input": "hi", "top_logprobs": 2, "include": ["message.output_text.logprobs"]},
    ),
    "reasoning": (text_script(THOUGHT, "Hello"), {"input": "hi"}),
    "summary": (
        text_script(THOUGHT, "Hello"),
        {
            "input": "hi",
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "store": False,
        },
    ),
    "tools": (
        text_script(THOUGHT, "I look. ", CALL),
        {"input": "hi", "tools": [{"type": "function", "strict": None} | FUNCTION]},
    ),
    "custom tool": (
        text_script(SQL_CALL),
        {"input": "hi", "tools": [SQL]},
    ),
    "JSON": (
        text_script('{"a"', ": 1}"),
        {
            "input": "hi",
            "text": {"format": {"type": "json_schema", **NAMED}},
        },
    ),
    "length": (length_script, {"input": "hi", "max_output_tokens": 16}),
    "settings": (
        text_script("a"),
        {
            "input": "hi",
            "metadata": {"k": "v"},
            "temperature": 0.5,
            "top_p": 0.5,
            "truncation": "auto",
            "prompt_cache_key": "k",
            "safety_identifier": "s",
            "parallel_tool_calls": False,
            "tool_choice": "auto",
        },
    ),
}
MESSAGES: dict[str, Case] = {
    "text": (text_script("Hello", " wörld", cached=2, written=3), {}),
    "thinking": (
        text_script(THOUGHT, "Hello"),
        {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000},
    ),
    "tools": (
        text_script(THOUGHT, "I look. ", CALL),
        {"tools": [{"name": "get_weather", "input_schema": PARAMETERS}]},
    ),
    "length": (length_script, {}),
    "stop sequence": (stopped_script, {"stop_sequences": ["ll"]}),
}


def check(
    http: TestClient, path: str, body: dict[str, Any], plain: str, event: str, vendor: Vendor
) -> None:
    """Check the plain answer and each event of the stream."""
    asked = {name: value for name, value in body.items() if name != "stream_options"}
    answer = http.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    validate(plain, answer.json(), vendor)
    streamed = events(http.post(path, json=body | {"stream": True}))
    assert len(streamed) >= 2
    for item in streamed:
        validate(event, _ended(item) if event == "CreateCompletionResponse" else item, vendor)


def _ended(event: dict[str, Any]) -> dict[str, Any]:
    """Fill what is null in a stream of completions. The description has the plain answer only."""
    choices = [c | {"finish_reason": c["finish_reason"] or "stop"} for c in event["choices"]]
    return {k: v for k, v in event.items() if k != "usage" or v is not None} | {"choices": choices}


@pytest.mark.parametrize("case", CHAT)
def test_chat(http: TestClient, engine: FakeEngine, case: str) -> None:
    engine.script, fields = CHAT[case]
    plain, event = "CreateChatCompletionResponse", "CreateChatCompletionStreamResponse"
    check(http, "/v1/chat/completions", ASK | fields, plain, event, "openai")


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions(http: TestClient, engine: FakeEngine, case: str) -> None:
    engine.script, fields = COMPLETIONS[case]
    name = "CreateCompletionResponse"
    check(http, "/v1/completions", MODEL | fields, name, name, "openai")


@pytest.mark.parametrize("case", RESPONSES)
def test_responses(http: TestClient, engine: FakeEngine, case: str) -> None:
    engine.script, fields = RESPONSES[case]
    body = MODEL | fields
    check(http, "/v1/responses", body, "Response", "ResponseStreamEvent", "openai")


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(http: TestClient, engine: FakeEngine, case: str) -> None:
    engine.script, fields = MESSAGES[case]
    body = ASK | {"max_tokens": 20} | fields
    check(http, "/v1/messages", body, "Message", "MessageStreamEvent", "anthropic")


def test_the_tokens_of_messages(http: TestClient) -> None:
    answer = http.post("/v1/messages/count_tokens", json=ASK)
    validate("CountMessageTokensResponse", answer.json(), "anthropic")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    def embedding(request: GenerateRequest) -> RequestOutput:
        item = output(request, delta(finish=FinishReason.LENGTH), finished=True)
        return msgspec.structs.replace(item, embedding=struct.pack("<2f", 0.6, 0.8))

    monkeypatch.setattr(fake_engine, "nothing", embedding)
    info = EmbeddingInfo(size=2, pooling="mean", is_normalized=True)
    engine.model = dataclasses.replace(engine.model, embedding=info)
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as http:
        body = MODEL | {"input": ["a", "b"], "encoding_format": encoding}
        answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    if encoding == "base64":  # the description has numbers only
        for item in document["data"]:
            item["embedding"] = list(struct.unpack("<2f", base64.b64decode(item["embedding"])))
    validate("CreateEmbeddingResponse", document)


def test_models(http: TestClient) -> None:
    validate("ListModelsResponse", http.get("/v1/models").json())
    validate("Model", http.get("/v1/models/tiny-test").json())


PATHS: dict[str, Vendor] = {
    "/v1/chat/completions": "openai",
    "/v1/completions": "openai",
    "/v1/embeddings": "openai",
    "/v1/responses": "openai",
    "/v1/messages": "anthropic",
    "/v1/messages/count_tokens": "anthropic",
}


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"messages": 1}', b'{"model": "other"}'])
@pytest.mark.parametrize("path", PATHS)
def test_errors(http: TestClient, path: str, content: bytes) -> None:
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    validate("ErrorResponse", answer.json(), PATHS[path])


STREAMS: dict[str, tuple[dict[str, Any], str, str, Vendor]] = {
    "/v1/chat/completions": (
        ASK,
        "CreateChatCompletionStreamResponse",
        "ErrorResponse",
        "openai",
    ),
    "/v1/responses": (
        MODEL | {"input": "hi"},
        "ResponseStreamEvent",
        "ResponseStreamEvent",
        "openai",
    ),
    "/v1/messages": (ASK | {"max_tokens": 9}, "MessageStreamEvent", "ErrorResponse", "anthropic"),
}


@pytest.mark.parametrize("path", STREAMS)
def test_an_error_in_a_stream(http: TestClient, engine: FakeEngine, path: str) -> None:
    body, event, error, vendor = STREAMS[path]
    engine.script = lambda request: [output(request, delta("a")), EngineDeadError("lost")]
    *before, last = events(http.post(path, json=body | {"stream": True}))
    assert before
    for item in before:
        validate(event, item, vendor)
    validate(error, last, vendor)
    assert "error" in json.dumps(last)


def test_the_schemas_refuse_what_they_do_not_describe(http: TestClient) -> None:
    answer = http.post("/v1/chat/completions", json=ASK).json()
    answer["choices"][0]["finish_reason"] = "ended"
    with pytest.raises(AssertionError, match=r"choices\[0\]\.finish_reason: 'ended'"):
        validate("CreateChatCompletionResponse", answer)
