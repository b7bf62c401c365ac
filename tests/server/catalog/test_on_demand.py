"""Requests over HTTP to one of several scripted models."""

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Response
from fastapi.testclient import TestClient
from starlette.types import Message, Send

from stonechat_models import AdapterInfo
from stonechat_server.access.keys import KeyStore
from stonechat_server.access.keys_file import add_key
from stonechat_server.api.shared.on_demand import WaitingStream
from stonechat_server.app import create_app
from stonechat_server.catalog.entry import Entry, State
from stonechat_server.observability.ledger import Ledger
from stonechat_server.settings import Settings
from tests.server.catalog.scripted_models import KV_BYTES, Models, in_loop, models, until
from tests.server.fake_engine import FakeEngine, text_script
from tests.server.fake_media import IMAGES, image, png, user

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@contextmanager
def serving(
    them: Models, key_store: KeyStore | None = None, **settings: Any
) -> Iterator[TestClient]:
    app = create_app(Settings(**settings), them.catalog, key_store=key_store)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def pair(**shared: Any) -> Models:
    return models({"a": 4, "b": 4}, **shared)


def test_images_go_to_the_model_that_takes_them() -> None:
    """Its load comes first, and a count of tokens needs its engine, too."""
    them = pair(max_body_size=1000)
    them.loader.changes["b"] = {"images": IMAGES}
    message = user("see", image(png("x" * 3000)))
    with serving(them) as client:
        error = client.post(CHAT, json={"model": "a", "messages": [message]}).json()["error"]
        assert (error["param"], error["code"]) == (
            "messages[0].content[1]",
            "unsupported_parameter",
        )
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert cards["a"]["input_modalities"] == ["text"]
        assert "input_modalities" not in cards["b"]
        for _ in range(2):
            counted = client.post("/tokenize", json={"model": "b", "messages": [message]})
            assert counted.status_code == 200, counted.text
            assert counted.json()["tokens"].count(IMAGES.token_id) == 2
            client.post("/v1/models/unload", json={"model": "b"})
        answer = client.post(CHAT, json={"model": "b", "messages": [message]})
        assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 2
        card = client.get("/v1/models/b").json()
        assert card["input_modalities"] == ["text", "image"]


def test_the_name_of_a_request_picks_the_model() -> None:
    them = pair()
    with serving(them) as client:
        for name, expected in (("b", "b"), ("a", "a"), (None, "a")):
            body = HI if name is None else HI | {"model": name}
            answer = client.post(CHAT, json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == expected
        assert [len(them.loader.engines[name].requests) for name in "ab"] == [2, 1]
        missing = client.post(CHAT, json=HI | {"model": "c"})
        assert missing.status_code == 404
        assert "Available: 'a', 'b'" in missing.text
    assert not any(engine.is_alive for engine in them.loader.engines.values())


def test_an_alias_is_the_same_model_and_metrics_have_its_name() -> None:
    them = pair()
    them.catalog.entries[1].names = ("b", "gpt-4o")
    with serving(them) as client:
        assert client.post(CHAT, json=HI | {"model": "gpt-4o"}).json()["model"] == "gpt-4o"
        assert client.post(CHAT, json=HI | {"model": "b"}).json()["model"] == "b"
        client.post(CHAT, json=HI | {"model": "a", "stream": True})
        text = client.get("/metrics").text
    assert them.loader.started == ["b", "a"]
    count = "stonechat:e2e_request_latency_seconds_count"
    assert f'{count}{{endpoint="{CHAT}",model_name="b"}} 2.0' in text
    assert f'{count}{{endpoint="{CHAT}",model_name="a"}} 1.0' in text
    assert 'stonechat:inter_token_latency_seconds_count{model_name="b"} 4.0' in text
    assert 'stonechat:model_loaded{model_name="b"} 1.0' in text
    assert 'stonechat:model_loads_total{model_name="a"} 1.0' in text
    assert 'stonechat:num_requests_running{model_name="a"} 0.0' in text
    assert 'stonechat:http_responses_total{model_name="",route="/v1/chat' in text


@pytest.fixture
def comments(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """The comments that waiting streams have sent."""
    sent: list[Message] = []
    original = WaitingStream._comments

    async def recorded(stream: WaitingStream, send: Send) -> None:
        async def record(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                sent.append(message)

        await original(stream, record)

    monkeypatch.setattr(WaitingStream, "_comments", recorded)
    return sent


def loads_once(them: Models, name: str, condition: Callable[[], bool]) -> None:
    """Let a load end as soon as the condition holds."""

    class Gate(asyncio.Event):
        async def wait(self) -> bool:
            await until(condition)
            return True

    them.loader.gates[name] = Gate()


def test_a_stream_has_comments_while_its_model_loads(comments: list[Message]) -> None:
    them = pair()
    loads_once(them, "b", lambda: len(comments) >= 2)
    with serving(them, keep_alive_interval=0.05) as client:
        answer = client.post(CHAT, json=HI | {"model": "b", "stream": True})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"]
    head, _, rest = answer.text.partition("data: ")
    assert head.count(": keep-alive\n\n") >= 2
    assert head.replace(": keep-alive\n\n", "") == ""
    assert rest.endswith("data: [DONE]\n\n")
    assert '"content":"Hello"' in rest


@pytest.mark.parametrize(
    ("path", "body", "start"),
    [
        (
            CHAT,
            HI,
            'data: {"error":{"message":"The model \'b\' could not be loaded: it is torn. It ',
        ),
        ("/v1/messages", HI | {"max_tokens": 5}, "event: error\ndata: {"),
        ("/v1/responses", {"input": "Hi"}, 'event: error\ndata: {"type":"error"'),
        ("/v1/completions", {"prompt": "Hi"}, 'data: {"error":'),
    ],
)
def test_an_error_after_a_comment_is_an_event(
    path: str, body: Any, start: str, comments: list[Message]
) -> None:
    them = pair()
    loads_once(them, "b", lambda: bool(comments))
    them.loader.errors["b"] = "it is torn"
    with serving(them, keep_alive_interval=0.05) as client:
        answer = client.post(path, json=body | {"model": "b", "stream": True})
        assert answer.status_code == 200
        event = answer.text.rpartition(": keep-alive\n\n")[2]
        assert event.startswith(start)
        assert "it is torn" in event
        assert event.count("data: ") == 1
        again = client.post(path, json=body | {"model": "b", "stream": True})
        assert again.status_code == 503  # at once, and so as an ordinary error
        assert "it is torn" in again.text


def test_errors_of_a_load_are_answers() -> None:
    them = models({"a": 4, "b": 12}, load_timeout=60.0)
    them.loader.errors["a"] = "it is torn"
    with serving(them) as client:
        torn = client.post(CHAT, json=HI | {"model": "a"})
        assert (torn.status_code, torn.json()["error"]["code"]) == (503, "model_load_failed")
        large = client.post(CHAT, json=HI | {"model": "b", "stream": True})
        assert (large.status_code, large.json()["error"]["code"]) == (503, "model_does_not_fit")
        assert large.headers["x-should-retry"] == "false"
        cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
        assert (cards["a"]["state"], cards["b"]["state"]) == ("failed", "unloaded")
        assert "it is torn" in cards["a"]["error"]


def test_a_wrong_body_is_told_without_a_load() -> None:
    them = pair()
    with serving(them) as client:
        assert client.post(CHAT, json={"model": "b"}).status_code == 400
    assert them.loader.started == []


def test_the_bound_of_a_request_is_its_own() -> None:
    them = pair()
    loads_once(them, "b", lambda: False)
    with serving(them) as client:
        headers = {"X-Request-Timeout": "0.05"}
        answer = client.post(CHAT, json=HI | {"model": "b"}, headers=headers)
        assert answer.status_code == 503
        assert "was not loaded within 0.05 s" in answer.text
        text = client.get("/metrics").text
        labels = f'endpoint="{CHAT}",model_name="b",reason="load_timeout"'
        assert f"requests_refused_total{{{labels}}} 1.0" in text


def test_the_bound_of_a_request_counts_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    them = pair()
    began = SimpleNamespace(monotonic=lambda: time.monotonic() - 100)
    monkeypatch.setattr("stonechat_server.api.shared.on_demand.time", began)
    with serving(them) as client:
        for headers in ({}, {"X-Request-Timeout": "1000"}):
            answer = client.post(CHAT, json=HI | {"model": "b"}, headers=headers)
            assert answer.status_code == 200
        them.loader.engines["b"].script = lambda request: [40.0]
        headers = {"X-Request-Timeout": "90"}
        answer = client.post(CHAT, json=HI | {"model": "b"}, headers=headers)
        assert answer.status_code == 504


@in_loop
async def test_an_answer_that_comes_while_the_first_comment_waits_begins_itself() -> None:
    sent: list[Message] = []
    is_waiting = asyncio.Event()

    async def send(message: Message) -> None:
        if not is_waiting.is_set():  # the client reads nothing yet
            is_waiting.set()
            await asyncio.get_running_loop().create_future()
        sent.append(message)

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def answer() -> Response:
        await is_waiting.wait()
        return Response("data: 1", media_type="text/event-stream")

    services = SimpleNamespace(settings=Settings(keep_alive_interval=0.001))
    received: Any = SimpleNamespace(services=services)
    await WaitingStream(received, answer)({"type": "http"}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("has_several", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_runs_out_of_time_is_counted_once(has_several: bool, stream: bool) -> None:
    them = pair()
    engine = FakeEngine()
    app = create_app(Settings(), them.catalog if has_several else engine)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        name = "b" if has_several else "tiny-test"
        if has_several:
            client.post("/v1/models/load", json={"model": name})
            engine = them.loader.engines[name]
        engine.script = lambda request: [60.0]
        body = HI | {"model": name, "stream": stream}
        answer = client.post(CHAT, json=body, headers={"X-Request-Timeout": "0.05"})
        assert answer.status_code == 504
        labels = f'endpoint="{CHAT}",model_name="{name}",reason="request_timeout"'
        text = client.get("/metrics").text
        lines = [line for line in text.splitlines() if "requests_refused_total{" in line]
        assert lines == [f"stonechat:requests_refused_total{{{labels}}} 1.0"]


@pytest.mark.parametrize("stream", [False, True])
def test_no_more_wait_for_a_model_than_the_queue_holds(stream: bool) -> None:
    them = pair()
    them["b"].num_waiting = 3
    with serving(them, max_queued_requests=3) as client:
        answer = client.post(CHAT, json=HI | {"model": "b", "stream": stream})
        assert answer.status_code == 429
        assert "3 requests wait until the model 'b' is loaded" in answer.text
        assert answer.headers["retry-after"] == "1"
        assert client.post(CHAT, json=HI | {"model": "a", "stream": stream}).status_code == 200
        assert 'reason="queue_full"} 1.0' in client.get("/metrics").text
    assert them.loader.started == ["a"]
    assert them["b"].num_waiting == 3


def test_requests_hold_their_model_until_they_end() -> None:
    them = pair()
    with serving(them) as client:
        for stream in (False, True):
            assert client.post(CHAT, json=HI | {"model": "b", "stream": stream}).status_code == 200
            assert (them["b"].num_users, them["b"].num_waiting) == (0, 0)
        bad = client.post(CHAT, json=HI | {"model": "b", "logit_bias": {"999999": 1}})
        assert bad.status_code == 400
        assert (them["b"].num_users, them["b"].num_waiting) == (0, 0)


def test_what_needs_the_tokenizer_only_wakes_no_model() -> None:
    them = pair()
    with serving(them) as client:
        body = {"model": "b", "prompt": "hé"}
        assert client.post("/tokenize", json=body).json()["tokens"] == list("hé".encode())
        assert them.loader.started == ["b"]
        assert client.post("/v1/models/unload", json={"model": "b"}).json()["state"] == "sleeping"
        assert client.post("/tokenize", json=body).json()["count"] == 3
        assert client.get("/tokenizer_info?model=b").json()["max_model_len"] == 4096
        assert client.post("/v1/messages/count_tokens", json=HI | {"model": "b"}).json()
        assert them["b"].state is State.SLEEPING
        assert client.get("/page/load?model=b").json()["num_blocks"] == 0
    assert them.loader.started == ["b"]


def test_models_are_listed_loaded_and_unloaded() -> None:
    them = pair()
    with serving(them) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        loaded = client.post("/v1/models/load", json={"model": "b"}).json()
        assert (loaded["id"], loaded["state"], loaded["root"]) == ("b", "loaded", "b")
        engine = them.loader.engines["b"]
        expected = engine.model.weight_bytes + KV_BYTES + (256 << 20)
        assert loaded["size"] == expected
        states = {c["id"]: c["state"] for c in client.get("/v1/models").json()["data"]}
        assert states == {"a": "unloaded", "b": "loaded"}
        listed = client.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
        assert [model["id"] for model in listed["data"]] == ["a", "b"]
        assert client.post("/models/unload", json={"model": "b"}).json()["state"] == "sleeping"
        assert not engine.is_alive
        assert client.get("/health").status_code == 200
        assert client.post("/v1/models/load", json={"model": "c"}).status_code == 404
        assert client.post("/v1/models/load", json={}).status_code == 400


def test_only_keys_that_may_load_and_unload(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    user = add_key(file, "user", models=("a", "b"))
    admin = add_key(file, "admin", models=("a",), manages_models=True, requests_per_minute=2)
    them = pair()
    with serving(them, KeyStore(file)) as client:

        def post(path: str, name: str, key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post(path, json={"model": name}, headers=headers).status_code

        for action in ("load", "unload"):
            assert post(f"/v1/models/{action}", "a", user) == 403
            assert post(f"/v1/models/{action}", "a", admin) == 200
            assert post(f"/v1/models/{action}", "b", admin) == 404
            assert post(f"/v1/models/{action}", "a", "nonsense") == 401
        assert post("/v1/models/load", "a", admin) == 429
    plain = models({"a": 4})
    with serving(plain, api_key="sk-plain") as client:
        headers = {"X-Api-Key": "sk-plain"}
        assert (
            client.post("/v1/models/load", json={"model": "a"}, headers=headers).status_code == 200
        )


def test_the_only_model_of_a_server_stays_loaded(client: TestClient) -> None:
    card = client.post("/v1/models/load", json={"model": "tiny-test"}).json()
    assert card["state"] == "loaded"
    answer = client.post("/v1/models/unload", json={"model": "tiny-test"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_unloadable")


def test_a_forced_unload_ends_a_stream_with_an_error() -> None:
    them = pair()
    with serving(them) as client:
        client.post("/v1/models/load", json={"model": "b"})
        engine = them.loader.engines["b"]
        entry: Entry = them["b"]

        async def shutdown() -> None:
            engine.is_alive = False
            stop.set()

        stop = threading.Event()
        engine.shutdown = shutdown  # type: ignore[method-assign]
        engine.script = lambda request: [*text_script("Hello", " you")(request)[:1], 0.5, _dead()]
        answers: list[str] = []
        body = HI | {"model": "b", "stream": True}
        thread = threading.Thread(target=lambda: answers.append(client.post(CHAT, json=body).text))
        thread.start()
        while not entry.num_users:
            stop.wait(0.01)
        forced = client.post("/v1/models/unload", json={"model": "b", "force": True})
        assert forced.json()["state"] == "sleeping"
        thread.join(60)
        events = [json.loads(line[6:]) for line in answers[0].splitlines() if line[:6] == "data: "]
        assert events[-1]["error"]["code"] == "engine_dead"
        assert (entry.num_users, entry.num_waiting) == (0, 0)


def test_an_adapter_belongs_to_its_model() -> None:
    them = models({"a": 4, "b": 4}, {"b": {"lora": ["sql=adapters/sql"]}})
    sql = AdapterInfo(name="sql", rank=8, num_weights=2, num_bytes=1000, weights_hash="x")
    them.loader.changes["b"] = {"adapters": (sql,)}
    with serving(them) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["a", "b", "sql"]
        answers = [client.post(CHAT, json=HI | {"model": name}).json() for name in ("sql", "b")]
        assert [answer["model"] for answer in answers] == ["sql", "b"]
        assert answers[0]["system_fingerprint"] != answers[1]["system_fingerprint"]
        requests = them.loader.engines["b"].requests
        assert [request.adapter for request in requests] == ["sql", ""]
        assert client.get("/v1/models/sql").json()["parent"] == "b"
    assert them.loader.started == ["b"]


def test_the_ledger_has_the_names_of_requests(tmp_path: Path) -> None:
    them = pair()
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path / "journal")
    app = create_app(Settings(), them.catalog, ledger=ledger)
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for name in ("a", "b", "b"):
            client.post(CHAT, json=HI | {"model": name})
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        rows = database.execute("SELECT model, count(*) FROM requests GROUP BY 1 ORDER BY 1")
        assert list(rows) == [("a", 1), ("b", 2)]


def _dead() -> Exception:
    from stonechat_models import EngineDeadError

    return EngineDeadError("the engine was shut down")
