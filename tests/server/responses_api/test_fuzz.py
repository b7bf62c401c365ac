"""The answers to random valid requests have OpenAI's form.

`test_fuzz_endpoints` has requests that are not valid.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.fake_engine import ByteTokenizer, FakeEngine
from tests.server.messages_api.scripts import TEMPLATE, call, text_script
from tests.server.responses_api.answers import URL, check_response, events_of
from tests.server.robustness.test_fuzz import JSON, TEXT

NAME = st.sampled_from(["f", "g", "crm__f"])
STATUS = st.sampled_from(["completed", "incomplete", None])
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text"]), "text": TEXT}),
    max_size=3,
)


def item(kind: str, /, optional: Any = None, **fields: Any) -> st.SearchStrategy[Any]:
    others = {"id": TEXT | st.none(), "status": STATUS, "extra": JSON} | (optional or {})
    return st.fixed_dictionaries({"type": st.just(kind), **fields}, optional=others)


ITEM = st.one_of(
    item(
        "message",
        role=st.sampled_from(["user", "assistant", "system", "developer"]),
        content=TEXT | PARTS,
    ),
    item("function_call", {"namespace": TEXT}, call_id=TEXT, name=TEXT, arguments=TEXT),
    item("function_call_output", {"name": TEXT}, call_id=TEXT, output=TEXT | PARTS),
    item("custom_tool_call", call_id=TEXT, name=TEXT, input=TEXT),
    item("custom_tool_call_output", call_id=TEXT, output=TEXT | PARTS),
    item(
        "reasoning",
        {
            "content": st.lists(item("reasoning_text", text=TEXT), max_size=2),
            "encrypted_content": TEXT | st.just("stonechat-1.aGk="),
        },
        summary=st.lists(item("summary_text", text=TEXT), max_size=2),
    ),
)
TOOL = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "custom"]), "name": NAME}, optional={"description": TEXT}
)
TOOLS = st.lists(TOOL, max_size=2, unique_by=lambda tool: str(tool["name"]))
HI = {"role": "user", "content": "hi"}
VALID = st.fixed_dictionaries(
    {"input": TEXT | st.lists(ITEM, max_size=4).map(lambda items: [*items, HI])},
    optional={
        "instructions": TEXT,
        "stream": st.booleans(),
        "tools": TOOLS,
        "parallel_tool_calls": st.booleans(),
        "include": st.lists(st.sampled_from(["reasoning.encrypted_content", "x"]), max_size=2),
        "reasoning": st.fixed_dictionaries({}, optional={"summary": st.just("auto")}),
        "truncation": st.sampled_from(["auto", "disabled"]),
        "max_output_tokens": st.integers(1, 2**70),
        "metadata": st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2),
    },
)


@pytest.fixture(scope="module")
def shared_client() -> Iterator[TestClient]:
    script = text_script("<think>hm</think>Hello" + call("f", a=1) + call("g"))
    engine = FakeEngine(tokenizer=ByteTokenizer(chat_template=TEMPLATE), script=script)
    app = create_app(Settings(), engine)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(document=VALID)
def test_valid_requests_are_answered(shared_client: TestClient, document: dict[str, Any]) -> None:
    response = shared_client.post(URL, content=json.dumps(document))
    assert response.status_code == 200, response.text
    if document.get("stream"):
        events_of(response)
    else:
        check_response(response.json())
        check_stored(shared_client, response.json())


def check_stored(client: TestClient, answer: dict[str, Any]) -> None:
    """The answer can be fetched and continued, and its input is listed as OpenAI's is."""
    place = f"{URL}/{answer['id']}"
    assert client.get(place).json() == answer
    items = client.get(f"{place}/input_items").json()
    validate("ResponseItemList", items)
    assert client.post(URL, json={"previous_response_id": answer["id"]}).status_code == 200
