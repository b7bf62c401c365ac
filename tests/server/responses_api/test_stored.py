"""Stored responses: continued by `previous_response_id`, fetched, listed and deleted."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from stonechat_models import EngineDeadError, FinishReason
from tests.openai_schema import validate
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output
from tests.server.messages_api.scripts import call, text_script
from tests.server.responses_api.answers import (
    SHELL,
    URL,
    WEATHER,
    ask,
    check_known,
    check_response,
    custom_call,
    post,
    stream,
)

ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
USER = {"role": "user", "content": "hi"}


def prompt_of_items(client: TestClient, engine: FakeEngine, *items: Any, **fields: Any) -> str:
    """The prompt when a client sends the whole conversation itself."""
    ask(client, input=list(items), store=False, **fields)
    return engine.prompt


def list_items(client: TestClient, answer: Any, **parameters: Any) -> Any:
    response = client.get(f"{URL}/{answer['id']}/input_items", params=parameters)
    assert response.status_code == 200, response.text
    page = response.json()
    validate("ResponseItemList", page)
    for item in page["data"]:
        check_known(ITEM.validate_python(item, strict=True))
    return page


@pytest.mark.parametrize("streams", [False, True])
def test_a_response_continues_another(
    client: TestClient, engine: FakeEngine, streams: bool
) -> None:
    """The prompt is that of the whole conversation, at each of three turns."""
    engine.script = text_script("<think>Hm.</think>Hello")

    def turn(**fields: Any) -> Any:
        if streams:
            return stream(client, **fields)[-1]["response"]
        return ask(client, **fields)

    items: list[Any] = []
    answer: Any = {"id": None}
    for text in ("one", "two", "three"):
        previous = answer["id"]
        answer = turn(input=text, previous_response_id=previous, instructions="Be brief.")
        by_id = engine.prompt
        assert (answer["previous_response_id"], answer["store"]) == (previous, True)
        items.append({"role": "user", "content": text})
        assert by_id == prompt_of_items(client, engine, *items, instructions="Be brief.")
        items += answer["output"]
    assert by_id.count("Hello") == 2
    assert by_id.count("Hm.") == 2


def test_instructions_are_not_carried_over(client: TestClient, engine: FakeEngine) -> None:
    first = ask(client, input="one", instructions="Speak French.")
    answer = ask(client, input="two", previous_response_id=first["id"])
    assert "French" not in engine.prompt
    assert answer["instructions"] is None
    system = {"role": "system", "content": "Speak Greek."}
    first = ask(client, input=[system, USER])
    ask(client, input="two", previous_response_id=first["id"], instructions="Speak French.")
    assert engine.prompt.index("French") < engine.prompt.index("Greek")


def test_calls_and_their_results_come_along(client: TestClient, engine: FakeEngine) -> None:
    tools = [WEATHER, SHELL]
    engine.script = text_script("I look." + call("get_weather", city="Ulm"))
    first = ask(client, input="hi", tools=tools)
    [message, wanted] = first["output"]
    result = {"type": "function_call_output", "call_id": wanted["call_id"], "output": "rain"}
    engine.script = text_script(custom_call("shell", "ls"))
    second = ask(client, input=[result], tools=tools, previous_response_id=first["id"])
    by_id = engine.prompt
    items = [USER, message, wanted, result]
    assert by_id == prompt_of_items(client, engine, *items, tools=tools)
    assert "rain" in by_id
    [command] = second["output"]
    done = {"type": "custom_tool_call_output", "call_id": command["call_id"], "output": "a.txt"}
    engine.script = text_script("It rains.")
    third = ask(client, input=[done], tools=tools, previous_response_id=second["id"])
    by_id = engine.prompt
    assert by_id == prompt_of_items(client, engine, *items, command, done, tools=tools)
    kinds = [item["type"] for item in list_items(client, third, order="asc")["data"]]
    assert kinds == [
        *("message", "message", "function_call", "function_call_output"),
        *("custom_tool_call", "custom_tool_call_output"),
    ]


def test_a_conversation_may_branch(client: TestClient, engine: FakeEngine) -> None:
    first = ask(client, input="one")
    left = ask(client, input="left", previous_response_id=first["id"])
    right = ask(client, input="right", previous_response_id=first["id"])
    for answer, own, other in ((left, "left", "right"), (right, "right", "left")):
        ask(client, input="end", previous_response_id=answer["id"])
        assert own in engine.prompt
        assert other not in engine.prompt


def test_the_input_may_be_left_out(client: TestClient, engine: FakeEngine) -> None:
    first = ask(client, input="one")
    for nothing in (None, []):
        answer = ask(client, input=nothing, previous_response_id=first["id"])
        assert engine.prompt.count("<|im_start|>user") == 1
        assert len(list_items(client, answer)["data"]) == 2
        error = error_of(post(client, input=nothing))
        assert (error["param"], error["code"]) == ("input", "missing_required_parameter")


def test_an_answer_that_was_cut_is_stored(client: TestClient, engine: FakeEngine) -> None:
    cut = delta("Hel", finish=FinishReason.LENGTH)
    engine.script = lambda request: [output(request, cut, finished=True)]
    for answer in (ask(client, input="hi"), stream(client, input="hi")[-1]["response"]):
        assert answer["status"] == "incomplete"
        ask(client, input="go on", previous_response_id=answer["id"])
        assert "Hel" in engine.prompt


@pytest.mark.parametrize("streams", [False, True])
def test_what_fails_is_not_stored(client: TestClient, engine: FakeEngine, streams: bool) -> None:
    first = ask(client, input="one")
    store = client.app.state.server.responses  # type: ignore[attr-defined]
    before = store.num_responses, store.num_bytes
    engine.script = lambda request: [output(request, delta("a")), EngineDeadError("lost")]
    for previous in (None, first["id"]):
        post(client, input="hi", stream=streams, previous_response_id=previous)
    post(client, input="x" * 9000, previous_response_id=first["id"])  # too long for the model
    post(client, input=[{"type": "compaction"}], previous_response_id=first["id"])
    assert (store.num_responses, store.num_bytes) == before


def test_a_stored_response_is_fetched(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>Hm.</think>Hello")
    answer = ask(client, metadata={"k": "v"}, tools=[WEATHER], user="u")
    for path in (URL, URL.removeprefix("/v1")):
        stored = client.get(f"{path}/{answer['id']}")
        assert stored.headers["content-type"] == "application/json"
        assert stored.json() == answer
    last = stream(client)[-1]["response"]
    stored = client.get(f"{URL}/{last['id']}?stream=false").json()
    check_response(stored)
    assert stored == last
    included = client.get(f"{URL}/{last['id']}?include[]=message.output_text.logprobs")
    assert included.headers["x-ignored-params"] == "include"
    assert included.json() == stored
    error = error_of(client.get(f"{URL}/{last['id']}?stream=true"))
    assert (error["param"], error["code"]) == ("stream", "unsupported_parameter")


def test_a_deleted_response_is_gone(client: TestClient, engine: FakeEngine) -> None:
    first = ask(client, input="one")
    second = ask(client, input="two", previous_response_id=first["id"])
    place = f"{URL}/{first['id']}"
    deleted = client.delete(place)
    assert deleted.json() == {"id": first["id"], "object": "response", "deleted": True}
    for response in (client.get(place), client.delete(place), client.get(f"{place}/input_items")):
        assert response.status_code == 404
        error = error_of(response)
        validate("Error", error)
        assert (error["param"], error["code"]) == ("response_id", "response_not_found")
        assert error["message"].startswith(f"Response with id '{first['id']}' not found.")
    assert post(client, previous_response_id=first["id"]).status_code == 400
    ask(client, input="three", previous_response_id=second["id"])
    assert "one" in engine.prompt


@pytest.mark.parametrize("id", ["resp_1", "", "x" * 5000, "msg_1"])
def test_an_unknown_response_cannot_be_continued(client: TestClient, id: str) -> None:
    response = post(client, previous_response_id=id)
    assert response.status_code == 400
    error = error_of(response)
    validate("Error", error)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "previous_response_id"
    assert error["code"] == "previous_response_not_found"
    assert error["message"].startswith(f"Previous response with id '{id[:100]}' not found.")
    assert "another server process" in error["message"]


def test_keys_have_responses_of_their_own(new_client: ClientFactory) -> None:
    client = new_client(api_key=["one", "two"])
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    answer = client.post(URL, json={"input": "hi"}, headers=one).json()
    place, other = f"{URL}/{answer['id']}", f"{URL}/resp_{'0' * 24}"
    assert client.get(place).status_code == 401
    for path in ("", "/input_items"):
        assert client.get(place + path, headers=one).status_code == 200
        theirs, none = client.get(place + path, headers=two), client.get(other, headers=two)
        assert (theirs.status_code, none.status_code) == (404, 404)
        assert theirs.text == none.text.replace("resp_" + "0" * 24, answer["id"])
    assert client.delete(place, headers=two).status_code == 404
    for headers, status in ((one, 200), (two, 400)):
        body = {"input": "go on", "previous_response_id": answer["id"]}
        assert client.post(URL, json=body, headers=headers).status_code == status


def test_clients_decide_what_is_stored(client: TestClient) -> None:
    answer = ask(client, store=False)
    assert answer["store"] is False
    assert client.get(f"{URL}/{answer['id']}").status_code == 404
    first = ask(client, store=None)
    assert first["store"] is True
    answer = ask(client, store=False, previous_response_id=first["id"])
    assert client.get(f"{URL}/{answer['id']}").status_code == 404


@pytest.mark.parametrize("name", ["kept_items_size", "kept_responses", "kept_responses_age"])
def test_a_server_may_store_nothing(new_client: ClientFactory, name: str) -> None:
    client = new_client(**{name: 0})
    answer = ask(client)
    assert answer["store"] is False
    response = client.get(f"{URL}/{answer['id']}")
    assert response.status_code == 404
    assert "stores no responses" in error_of(response)["message"]
    error = error_of(post(client, previous_response_id=answer["id"]))
    assert error["code"] == "previous_response_not_found"
    assert "stores no responses" in error["message"]


def test_an_answer_without_room_says_so(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(kept_items_size=4000)
    engine.script = text_script("x" * 3000)
    *_, last = stream(client)
    assert last["response"]["store"] is False
    assert ask(client, input="x" * 3500)["store"] is False


def test_counting_tokens_stores_nothing(client: TestClient, engine: FakeEngine) -> None:
    store = client.app.state.server.responses  # type: ignore[attr-defined]
    first = ask(client)
    long = {"input": "x" * 9000, "previous_response_id": first["id"], "store": True}
    counted = client.post(f"{URL}/input_tokens", json=long).json()
    assert counted["object"] == "response.input_tokens"
    assert counted["input_tokens"] > 9000
    assert store.num_responses == 1
    error = error_of(client.post(f"{URL}/input_tokens", json={"previous_response_id": "resp_1"}))
    assert error["code"] == "previous_response_not_found"


def test_pages_of_items(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello")
    answer: Any = {"id": None}
    for i in range(4):
        answer = ask(client, input=f"{i}", previous_response_id=answer["id"])
    everything = list_items(client, answer, order="asc")
    texts = [item["content"][0]["text"] for item in everything["data"]]
    assert texts == ["0", "Hello", "1", "Hello", "2", "Hello", "3"]
    ids = [item["id"] for item in everything["data"]]
    assert len(set(ids)) == 7
    assert (everything["first_id"], everything["last_id"]) == (ids[0], ids[-1])
    assert everything["has_more"] is False
    assert [item["id"] for item in list_items(client, answer)["data"]] == ids[::-1]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen: list[str] = []
        page = list_items(client, answer, order=order, limit=3)
        while page["has_more"]:
            seen += [item["id"] for item in page["data"]]
            page = list_items(client, answer, order=order, limit=3, after=page["last_id"])
        assert seen + [item["id"] for item in page["data"]] == expected
    end = list_items(client, answer, order="asc", after=ids[-1])
    assert (end["data"], end["has_more"], end["first_id"]) == ([], False, "")


def test_items_that_come_twice_have_two_ids(client: TestClient) -> None:
    """So a client that asks for page after page comes to the end."""
    first = ask(client, input=[USER | {"id": "msg_mine"}, USER | {"id": "msg_mine"}])
    answer = ask(client, input=first["output"], previous_response_id=first["id"])
    page = list_items(client, answer, order="asc", limit=1)
    ids = [page["last_id"]]
    while page["has_more"] and len(ids) < 9:
        page = list_items(client, answer, order="asc", limit=1, after=ids[-1])
        ids.append(page["last_id"])
    assert len(ids) == len(set(ids)) == 4
    assert (ids[0], ids[2]) == ("msg_mine", first["output"][0]["id"])


@pytest.mark.parametrize(
    "parameters", [{"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_1"}]
)
def test_a_bad_page_is_refused(client: TestClient, parameters: dict[str, Any]) -> None:
    response = client.get(f"{URL}/{ask(client)['id']}/input_items", params=parameters)
    assert response.status_code == 400
    assert error_of(response)["param"] == next(iter(parameters))


def test_items_are_listed_in_the_published_form(client: TestClient) -> None:
    items = [
        {"role": "developer", "content": "d", "status": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}], "id": "msg_mine"},
        {"type": "reasoning", "content": [{"type": "text", "text": "r"}]},
        {"role": "assistant", "content": "b"},
        {"role": "assistant", "content": [{"type": "text", "text": "c", "annotations": None}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "text", "text": "o"}]},
        {"type": "custom_tool_call", "call_id": "e", "name": "g", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "e", "output": "y"},
    ]
    answer = ask(client, input=items)
    listed = list_items(client, answer, order="asc")["data"]
    assert [item["type"] for item in listed] == [item.get("type", "message") for item in items]
    assert listed[0]["content"] == [{"type": "input_text", "text": "d"}]
    assert listed[1]["id"] == "msg_mine"
    output_text = {"type": "output_text", "text": "b", "annotations": [], "logprobs": []}
    assert listed[3]["content"] == [output_text]


def test_a_long_conversation_is_refused(new_client: ClientFactory, engine: FakeEngine) -> None:
    """It may not have more than a request that brings it along."""
    client = new_client(max_body_size=2000, max_images_size=1, max_json_values=64)
    engine.script = text_script("Hello")
    first = ask(client, input="x" * 1600)
    error = error_of(post(client, input="x" * 500, previous_response_id=first["id"]))
    assert error["code"] == "request_too_large"
    assert "with what it continues" in error["message"]
    first = ask(client, input="x" * 1600)
    second = ask(client, input="hi", previous_response_id=first["id"], truncation="auto")
    for answer in (second, ask(client, input=[USER] * 15)):
        error = error_of(post(client, input="hi", previous_response_id=answer["id"]))
        assert (error["param"], error["code"]) == ("previous_response_id", "request_too_large")


def test_messages_of_earlier_turns_count(new_client: ClientFactory) -> None:
    client = new_client(max_messages=4)
    answer = ask(client, input="one")
    answer = ask(client, input="two", previous_response_id=answer["id"])
    response = post(client, input="three", previous_response_id=answer["id"])
    assert error_of(response)["code"] == "too_many_messages"


def test_another_model_may_continue(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(served_model_name=["one", "two"])
    first = ask(client, model="one", input="first")
    answer = ask(client, model="two", input="second", previous_response_id=first["id"])
    assert answer["model"] == "two"
    assert "first" in engine.prompt


def test_the_store_is_measured(client: TestClient) -> None:
    for _ in range(3):
        ask(client)
    store = client.app.state.server.responses  # type: ignore[attr-defined]
    lines = client.get("/metrics").text.splitlines()
    label = '{model_name="tiny-test"}'
    assert f"stonechat:stored_responses{label} 3.0" in lines
    assert f"stonechat:stored_response_bytes{label} {float(store.num_bytes)}" in lines
    assert store.num_bytes > 0
