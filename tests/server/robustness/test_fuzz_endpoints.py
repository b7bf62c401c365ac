"""Mutations of valid bodies of all endpoints: no 5xx, and each error has the endpoint's shape."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_server.app import create_app
from stonechat_server.completions_api.fill_in import FORMATS
from stonechat_server.settings import Settings
from tests.nightly import nightly
from tests.server.bodies import error_of
from tests.server.fake_engine import ByteTokenizer, FakeEngine

HI = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FUNCTION = {"name": "look_up", "description": "finds", "parameters": SCHEMA}
CHAT = {
    "model": "tiny-test",
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        HI,
        {
            "role": "assistant",
            "content": "look",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look_up", "arguments": '{"a": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "found"},
    ],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "auto",
    "temperature": 0.5,
    "max_completion_tokens": 5,
    "stop": ["x"],
    "stream": False,
    "logprobs": True,
    "top_logprobs": 1,
    "metadata": {"a": "b"},
}
ANTHROPIC = {
    "model": "tiny-test",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "toolu_1", "name": "look_up", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "content": [{"type": "text", "text": "found"}],
                },
                {"type": "document", "source": {"type": "text", "data": "more"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
        HI,
    ],
    "tools": [{"name": "look_up", "description": "finds", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
}
RESPONSES: dict[str, Any] = {
    "model": "tiny-test",
    "instructions": "Be brief.",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "a"}]},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "look_up",
            "arguments": '{"a": 1}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "found"},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "look_up", "input": "x"},
        {
            "type": "custom_tool_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "found"}],
        },
    ],
    "tools": [{"type": "function", **FUNCTION, "strict": True}],
    "tool_choice": "auto",
    "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["reasoning.encrypted_content"],
    "max_output_tokens": 20,
    "store": False,
    "stream": False,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/chat/completions/render": CHAT,
    "/v1/completions": {
        "model": "tiny-test",
        "prompt": ["hi", "there"],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 1,
        "n": 1,
        "best_of": 1,
        "suffix": None,
        "stream": False,
        "stop": ["x"],
        "logit_bias": {"5": -1},
    },
    "/infill": {
        "model": "tiny-test",
        "input_prefix": "a",
        "input_suffix": "b",
        "input_extra": [{"filename": "x", "text": "hi"}],
        "prompt": "there",
        "n_predict": 3,
        "n_indent": 1,
        "t_max_predict_ms": 100,
        "samplers": ["top_k"],
        "response_fields": ["content"],
        "stream": False,
    },
    "/v1/responses": RESPONSES,
    "/v1/responses/input_tokens": RESPONSES,
    "/v1/messages": {**ANTHROPIC, "stop_sequences": ["x"], "temperature": 0.5, "stream": False},
    "/v1/messages/count_tokens": {k: v for k, v in ANTHROPIC.items() if k != "max_tokens"},
    "/v1/embeddings": {
        "model": "tiny-test",
        "input": ["hi", "there"],
        "encoding_format": "float",
        "dimensions": 4,
        "user": "u",
    },
    "/v1/rerank": {
        "model": "tiny-test",
        "query": "hi",
        "documents": ["hi", {"text": "there"}],
        "top_n": 1,
        "return_documents": True,
    },
    "/v1/score": {"model": "tiny-test", "text_1": "hi", "text_2": ["hi", "there"]},
    "/tokenize": {
        "model": "tiny-test",
        "prompt": "hi",
        "add_special_tokens": True,
        "return_token_strs": True,
        "with_pieces": True,
    },
    "/v1/tokenize": {**CHAT, "add_special_tokens": True, "with_pieces": True},
    "/detokenize": {"model": "tiny-test", "tokens": [104, 105]},
    "/v1/models/load": {"model": "tiny-test"},
    "/api/chat": {
        "model": "tiny-test:latest",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi", "images": []},
            {
                "role": "assistant",
                "content": "",
                "thinking": "x",
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "tool_name": "f", "content": "2"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "format": "",
        "think": True,
        "stream": False,
        "options": {"temperature": 0.5, "num_predict": 3, "stop": ["x"], "num_ctx": 9},
        "logprobs": True,
        "top_logprobs": 1,
        "keep_alive": "5m",
    },
    "/api/generate": {
        "model": "tiny-test",
        "prompt": "hi",
        "system": "Be brief.",
        "format": {"type": "object"},
        "raw": False,
        "images": [],
        "stream": False,
        "options": {"seed": 3},
    },
    "/api/embed": {"model": "tiny-test", "input": ["hi"], "dimensions": 4, "truncate": True},
    "/api/embeddings": {"model": "tiny-test", "prompt": "hi"},
    "/api/show": {"model": "tiny-test", "verbose": False},
    "/api/pull": {"name": "tiny-test", "stream": False},
}
"""A valid body with many fields for each path."""
TWINS = (
    *("/v1/chat/completions/render", "/v1/tokenize", "/v1/responses/input_tokens"),
    *("/v1/messages/count_tokens", "/v1/score", "/api/embeddings"),
)
"""Paths that read the same fields as another, in the same way."""
SHAPES = [*(path for path in BODIES if path not in TWINS), *nightly(*TWINS)]
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations")
"""Paths whose bodies are forms with a file."""
FORM_NAMES = ("model", "language", "prompt", "response_format", "temperature", "stream", "seed")
FORM_VALUES = ("tiny-test", "en", "verbose_json", "1", "true", "-1", "1e999", "nan", "{}")
BOUNDARY = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FOR_OTHER_SERVERS = {
    *("/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel"),  # that keep files
    "/v1/models/unload",  # that have several models
}
WORDS = sorted(
    {
        *("user", "system", "assistant", "tool", "text", "input_text", "image", "function"),
        *("custom", "auto", "none", "required", "any", "ephemeral", "enabled", "tool_use"),
        *("tool_result", "json_object", "regex", "base64", "tiny-test", "\x00", "\ud7ff", "-1"),
    }
)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([2**31, 2**63, 10**30, -(2**63) - 1, 1e308, 0.5])
    | st.sampled_from(WORDS)
    | st.text(max_size=5)
)
JSON = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def containers(value: Any) -> Iterator[Any]:
    """All lists and objects of a document."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from containers(item)


def names(value: Any) -> set[str]:
    """All keys of a document."""
    return {key for inner in containers(value) if isinstance(inner, dict) for key in inner}


NAMES = sorted(set().union(*(names(body) for body in BODIES.values())) | {"response_format"})


def mutate(draw: st.DataObject, body: dict[str, Any]) -> dict[str, Any]:
    """Change one to three places: a value, a key, a missing or a repeated item."""
    body = copy.deepcopy(body)
    if "stream" in body:
        body["stream"] = draw.draw(st.booleans())
    for _ in range(draw.draw(st.integers(1, 3))):
        places = list(containers(body))
        place = places[draw.draw(st.integers(0, len(places) - 1))]
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        kind = draw.draw(st.sampled_from(["value", "other", "remove", "add"]))
        if kind == "add" or not keys:
            value = draw.draw(JSON | st.sampled_from(places).map(copy.deepcopy))
            if isinstance(place, dict):
                place[draw.draw(st.sampled_from(NAMES))] = value
            else:
                place.append(value)
            continue
        key = draw.draw(st.sampled_from(keys))
        if kind == "remove":
            del place[key]
        else:
            place[key] = draw.draw(LEAF if kind == "value" else JSON)
    return body


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    tokenizer = ByteTokenizer(added_tokens=frozenset(FORMATS[0].tokens))
    app = create_app(Settings(), FakeEngine(tokenizer=tokenizer))
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def check(path: str, response: Response) -> None:
    """Fail for a 5xx, for an error event of a stream, or for an error of another shape."""
    # 415: bytes that begin like a compressed body
    assert response.status_code in (200, 400, 404, 415), response.text
    if response.status_code != 200:
        if path.startswith("/v1/messages"):
            document = response.json()
            assert set(document) == {"type", "error", "request_id"}
            assert document["type"] == "error"
            assert document["error"]["type"]
            assert document["error"]["message"]
        elif path.startswith("/api/"):
            (text,) = response.json().values()
            assert isinstance(text, str)
        else:
            error_of(response)
    elif response.headers["content-type"] == "application/x-ndjson":
        assert "failed to process" not in response.text
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert "server_error" not in response.text
        assert "api_error" not in response.text
    else:
        assert isinstance(response.json(), dict)


def test_every_post_endpoint_is_tested(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    assert posts <= BODIES.keys() | {*FORMS} | FOR_OTHER_SERVERS


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_valid(client: TestClient, path: str) -> None:
    response = client.post(path, json=BODIES[path])
    check(path, response)
    # the scripted engine has none
    if "embed" not in path and path not in ("/v1/rerank", "/v1/score"):
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", SHAPES)
@settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_mutated_bodies_never_break_the_server(
    client: TestClient, path: str, data: st.DataObject
) -> None:
    check(path, client.post(path, content=json.dumps(mutate(data, BODIES[path]))))


@pytest.mark.parametrize("path", SHAPES)
@settings(max_examples=settings.default.max_examples // 4)
@given(content=st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bytes_never_break_the_server(client: TestClient, path: str, content: bytes) -> None:
    response = client.post(path, content=content)
    check(path, response)
    is_empty = path.startswith("/api/") and response.status_code == 200  # `{}` names the default
    assert is_empty or response.status_code in (400, 415)


@pytest.mark.parametrize("path", FORMS)
@given(
    fields=st.dictionaries(
        st.sampled_from(FORM_NAMES) | st.text(min_size=1, max_size=5),
        st.sampled_from(FORM_VALUES) | st.text(max_size=5),
    ),
    content=st.binary(max_size=50),
)
def test_forms_never_break_the_server(
    client: TestClient, path: str, fields: dict[str, str], content: bytes
) -> None:
    """The scripted engine takes no audio."""
    response = client.post(path, data=fields, files={"file": ("a.wav", content)})
    check(path, response)
    assert response.status_code in (400, 404)


@pytest.mark.parametrize("path", FORMS)
@given(start=st.sampled_from([b"", BOUNDARY]), content=st.binary(max_size=50))
def test_bytes_that_are_no_form_never_break_the_server(
    client: TestClient, path: str, start: bytes, content: bytes
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for sent in ({}, headers):
        response = client.post(path, content=start + content, headers=sent)
        check(path, response)
        assert response.status_code == 400
