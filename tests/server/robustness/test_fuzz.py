"""Random valid bodies are answered. `test_fuzz_endpoints` has those that are not valid."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.bodies import URL
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


@pytest.fixture(scope="module")
def shared_client() -> Iterator[TestClient]:
    app = create_app(Settings(), FakeEngine())
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=VALID)
def test_valid_bodies_are_answered(shared_client: TestClient, document: dict[str, Any]) -> None:
    response = shared_client.post(URL, content=json.dumps(document))
    assert response.status_code == 200, response.text
