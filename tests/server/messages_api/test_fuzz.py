"""Random bodies, valid and invalid: no answer is a 5xx, and streams equal plain answers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_server.app import create_app
from stonechat_server.messages_api.request import MessagesRequest
from stonechat_server.settings import Settings
from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.messages_api.answers import URL, both, error_of
from tests.server.messages_api.scripts import TEMPLATE, call, text_script
from tests.server.messages_api.test_answers import TOOLS
from tests.server.robustness.test_fuzz import FUZZ, JSON, TEXT

CACHE = {"cache_control": st.just({"type": "ephemeral"})}
OBJECT = st.dictionaries(TEXT, JSON, max_size=2)


def block(type: str, **fields: Any) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(type), **fields}, optional=CACHE)


BLOCK = st.one_of(
    block("text", text=TEXT),
    block("thinking", thinking=TEXT, signature=TEXT | st.just("stonechat.SGk=")),
    block("redacted_thinking", data=TEXT),
    block("tool_use", id=TEXT, name=TEXT, input=OBJECT | st.just({"INVALID_JSON": '{"a'})),
    block("tool_result", tool_use_id=TEXT, content=TEXT | st.lists(block("text", text=TEXT))),
    block("document", source=block("text", data=TEXT)),
    block("image", source=JSON),
    block("server_tool_use", id=TEXT),
    JSON,
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": TEXT | st.lists(BLOCK, max_size=4),
    }
)
TOOL = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "g", ""]), "input_schema": JSON | OBJECT},
    optional={"description": TEXT, "strict": st.booleans(), "type": TEXT | st.just("custom")},
)
VALID = st.fixed_dictionaries(
    {
        "model": st.just("tiny-test"),
        "max_tokens": st.integers(0, 2**70),
        "messages": st.lists(MESSAGE, min_size=1, max_size=4),
    },
    optional={
        "system": TEXT | st.lists(block("text", text=TEXT), max_size=2),
        "stream": st.booleans(),
        "tools": st.lists(TOOL, max_size=2),
        "tool_choice": block("tool", name=TEXT) | block("any"),
        "thinking": block("enabled", budget_tokens=st.integers(0, 2**40)) | block("disabled"),
        "output_config": st.fixed_dictionaries({"format": block("json_schema", schema=JSON)}),
        "stop_sequences": st.lists(TEXT, max_size=2),
        "metadata": st.dictionaries(st.just("user_id") | TEXT, TEXT, max_size=2),
        "context_management": JSON,
        "chat_template_kwargs": OBJECT,
    },
)  # fmt: skip
FIELD = st.sampled_from(sorted(MessagesRequest.model_fields)) | st.text(max_size=10)


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE))


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[TestClient]:
    app = create_app(Settings(), engine)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def check(client: TestClient, content: bytes) -> None:
    for path in (URL, f"{URL}/count_tokens"):
        response = client.post(path, content=content)
        assert response.status_code < 500, response.text
        if response.status_code != 200:
            error_of(response)


@FUZZ
@given(request=VALID, changes=st.dictionaries(FIELD, JSON, max_size=2))
def test_no_body_is_a_5xx(
    client: TestClient, request: dict[str, Any], changes: dict[str, Any]
) -> None:
    check(client, json.dumps(request | changes).encode(errors="replace"))


@FUZZ
@given(content=JSON.map(lambda value: json.dumps(value).encode(errors="replace")) | st.binary())
def test_no_json_is_a_5xx(client: TestClient, content: bytes) -> None:
    check(client, content)


PIECES = st.lists(
    st.sampled_from(
        [
            *("<think>", "</think>", "<tool_call>", "\n", "Hello", "wörld 👋", '{"a": ', "}"),
            call("get_weather", city="Rome"),
            call("now"),
        ]
    ),
    max_size=6,
)


@settings(FUZZ, suppress_health_check=list(HealthCheck))
@given(pieces=PIECES)
def test_a_stream_is_the_plain_answer(
    client: TestClient, engine: FakeEngine, pieces: list[str]
) -> None:
    engine.script = text_script("".join(pieces))
    both(client, tools=TOOLS)
