"""Random bodies, valid and invalid: no answer is a 5xx, and all errors have the same fields."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_server.app import create_app
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.settings import Settings
from tests.server.bodies import URL, error_of
from tests.server.fake_engine import FakeEngine

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["user", "text", "function", "auto", "json_schema", "tiny-test"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8)
            | st.sampled_from(
                ["role", "content", "type", "text", "function", "name", "id", "json"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), min_size=1, max_size=3
)
CALL = st.fixed_dictionaries(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT | st.just('{"a": 1}')}),
    }
)
MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "developer"]), "content": TEXT | PARTS},
        optional={"name": TEXT, "extra": JSON},
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={"content": TEXT | PARTS | st.none(), "tool_calls": st.lists(CALL, max_size=2)},
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "content": TEXT, "tool_call_id": TEXT}),
)
VALID = st.fixed_dictionaries(
    {"model": st.just("tiny-test"), "messages": st.lists(MESSAGE, min_size=1, max_size=4)},
    optional={
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "n": st.integers(1, 4),
        "max_completion_tokens": st.integers(1, 2**70),
        "stop": st.text(min_size=1) | st.lists(st.text(min_size=1), max_size=4),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100)),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stream": st.booleans(),
        "user": st.text(),
        "top_k": st.integers(-1, 10**30),
        "add_generation_prompt": st.booleans(),
        "chat_template_kwargs": st.dictionaries(st.text(max_size=8), JSON, max_size=2),
    },
)  # fmt: skip
FIELD = st.sampled_from(sorted(ChatCompletionRequest.model_fields)) | st.text(max_size=10)
FUZZ = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module")
def shared_client() -> Iterator[TestClient]:
    app = create_app(Settings(), FakeEngine())
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def check(client: TestClient, content: bytes) -> int:
    response = client.post(URL, content=content)
    # 415: bytes that begin like a compressed body
    assert response.status_code in (200, 400, 404, 415), response.text
    if response.status_code != 200:
        error_of(response)
    return response.status_code


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


@FUZZ
@given(document=VALID)
def test_valid_bodies_are_answered(shared_client: TestClient, document: dict[str, Any]) -> None:
    assert check(shared_client, encode(document)) == 200


@FUZZ
@given(document=VALID, changes=st.dictionaries(FIELD, JSON, min_size=1, max_size=3))
def test_changed_bodies_never_break_the_server(
    shared_client: TestClient, document: dict[str, Any], changes: dict[str, Any]
) -> None:
    check(shared_client, encode(document | changes))


@FUZZ
@given(message=st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), JSON))
def test_random_messages_never_break_the_server(
    shared_client: TestClient, message: dict[str, Any]
) -> None:
    check(shared_client, encode({"model": "tiny-test", "messages": [message]}))


@FUZZ
@given(content=st.binary(max_size=200) | JSON.map(encode))
def test_random_bytes_never_break_the_server(shared_client: TestClient, content: bytes) -> None:
    assert check(shared_client, content) in (400, 415)
