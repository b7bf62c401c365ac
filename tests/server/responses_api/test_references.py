"""Clients may refer to items of earlier answers by their ids, while these are kept."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import FinishReason, LogprobEntry, TopLogprob
from stonechat_server.responses_api.history import References
from stonechat_server.responses_api.items import ItemReference, Message
from stonechat_server.responses_api.marks import RESPONSE_PREFIX, item_id, response_id_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output
from tests.server.messages_api.scripts import text_script

URL = "/v1/responses"
USER = {"role": "user", "content": "hi"}
RESPONSES = [RESPONSE_PREFIX + letter * 24 for letter in "ab"]
THINKS = "<think>Hm.</think>Hello"


def post(client: TestClient, input: Any, headers: Any = None, **fields: Any) -> Any:
    response = client.post(URL, json={"input": input} | fields, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def error_of(client: TestClient, input: Any, headers: Any = None) -> Any:
    response = client.post(URL, json={"input": input}, headers=headers)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def reference(item: Any) -> dict[str, str]:
    return {"type": "item_reference", "id": item["id"]}


def test_a_reference_may_leave_its_type_out(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello")
    [item] = post(client, "hi")["output"]
    post(client, [USER, {"id": item["id"]}, {"type": None, "id": item["id"]}])
    assert engine.prompt.count("Hello") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_reference_means_the_item(client: TestClient, engine: FakeEngine, stream: bool) -> None:
    engine.script = text_script(THINKS)
    if stream:
        events = client.post(URL, json={"input": "hi", "stream": True}).text
        ids = [line.split('"id":"')[1].split('"')[0] for line in _done_items(events)]
        output = [{"id": id} for id in ids]
        items = post(client, "hi")["output"]
    else:
        items = output = post(client, "hi")["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    post(client, [USER, *map(reference, output), USER])
    by_reference = engine.prompt
    post(client, [USER, *items, USER])
    assert by_reference == engine.prompt
    assert "Hello" in engine.prompt


def _done_items(events: str) -> list[str]:
    return [
        line
        for line in events.splitlines()
        if line.startswith("data: ") and '"response.output_item.done"' in line
    ]


def test_a_call_may_be_referred_to(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    tools = [{"type": "function", "name": "f", "parameters": {}}]
    [call] = post(client, "hi", tools=tools)["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    post(client, [USER, reference(call), result], tools=tools)
    by_reference = engine.prompt
    post(client, [USER, call, result], tools=tools)
    assert by_reference == engine.prompt


def test_an_answer_says_whether_its_items_are_kept(client: TestClient) -> None:
    assert post(client, "hi")["store"] is True
    answer = post(client, "hi", store=False)
    assert answer["store"] is False
    error = error_of(client, [USER, reference(answer["output"][0])])
    assert (error["param"], error["code"]) == ("input[1].id", "item_not_found")
    assert "Send the item itself" in error["message"]


def test_without_room_nothing_is_kept(new_client: ClientFactory) -> None:
    client = new_client(kept_items_size=0)
    answer = post(client, "hi")
    assert answer["store"] is False
    assert error_of(client, [reference(answer["output"][0])])["code"] == "item_not_found"


def test_a_key_cannot_refer_to_the_items_of_another(new_client: ClientFactory) -> None:
    client = new_client(api_key=["one", "two"])
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    [item] = post(client, "hi", one)["output"]
    assert post(client, [USER, reference(item), USER], one)
    assert error_of(client, [USER, reference(item)], two)["code"] == "item_not_found"


def test_an_item_is_kept_without_its_log_probabilities(
    client: TestClient, engine: FakeEngine
) -> None:
    tops = tuple(TopLogprob(i, "abc", b"abc", -1.0) for i in range(20))
    end = delta("Hello", finish=FinishReason.STOP, logprobs=(LogprobEntry(1, "a", b"a", -1, tops),))
    engine.script = lambda request: [output(request, end, finished=True)]
    answer = post(client, "hi", top_logprobs=20)
    [item] = answer["output"]
    assert len(item["content"][0]["logprobs"][0]["top_logprobs"]) == 20
    stored = client.get(f"{URL}/{answer['id']}").json()
    assert stored["output"][0]["content"][0] == item["content"][0] | {"logprobs": []}
    post(client, [USER, reference(item), USER])
    assert "Hello" in engine.prompt


def test_the_items_of_all_references_are_bounded(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = new_client(max_body_size=10_000)
    engine.script = text_script("x" * 1000)
    [item] = post(client, "hi")["output"]
    assert post(client, [reference(item)] * 3)
    error = error_of(client, [USER] + [reference(item)] * 10)
    assert (error["param"], error["code"]) == ("input[9].id", "request_too_large")
    assert "more than 10000 bytes" in error["message"]


def test_the_number_of_references_is_bounded(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(max_messages=3)
    engine.script = text_script("<think>hm</think>")
    item, *_ = post(client, "hi")["output"]
    assert post(client, [reference(item)] * 3)
    error = error_of(client, [reference(item)] * 4)
    assert (error["param"], error["code"]) == ("input[3].id", "request_too_large")


def test_items_count_as_part_of_the_body(client: TestClient, engine: FakeEngine) -> None:
    """A short body that refers to much is prepared where large bodies are."""
    sizes: list[int] = []
    preparations = client.app.state.server.preparations  # type: ignore[attr-defined]
    run = preparations.run

    async def note(work: Any, size: int) -> Any:
        sizes.append(size)
        return await run(work, size)

    preparations.run = note
    engine.script = text_script("x" * 900)
    [item] = post(client, "hi")["output"]
    post(client, [reference(item), USER])
    assert sizes == []
    post(client, [reference(item), USER] * 19, truncation="auto")
    [size] = sizes
    assert size > 19 * 900


def test_an_answer_is_looked_up_once_and_an_item_is_parsed_once() -> None:
    looked_up = []
    content = b'{"type": "message", "role": "assistant", "content": "x"}'
    ids = [item_id("msg", response, number) for response in RESPONSES for number in (0, 1)]

    def find(response_id: str) -> dict[str, bytes]:
        looked_up.append(response_id)
        return {id: content for id in ids if response_id_of(id) == response_id}

    references = References(find=find, max_references=100, max_bytes=10_000)
    items = references.resolved(references_of(ids * 25))
    assert looked_up == RESPONSES
    assert len(items) == 100
    assert all(isinstance(item, Message) for item in items)
    assert len({id(item) for item in items}) == 4
    assert references.num_bytes == 100 * len(content)


def references_of(ids: list[str]) -> list[Any]:
    return [ItemReference(type="item_reference", id=id) for id in ids]
