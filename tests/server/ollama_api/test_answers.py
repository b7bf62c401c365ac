"""Lines and plain answers: text, thinking, calls, log-probabilities, counts, times and errors."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from fastapi.testclient import TestClient

from stonechat_models import (
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    RequestOutput,
    RequestTimings,
    TopLogprob,
)
from tests.server.api.openapi.test_document import Document, schema_problems
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output
from tests.server.messages_api.scripts import call, text_script
from tests.server.ollama_api.conftest import USER, ask, error, lines
from tests.server.ollama_api.test_requests import ADD

COUNTS = {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration"} | {
    "eval_count",
    "eval_duration",
}
THOUGHT_AND_CALLS = "<think>Well.</think>Sure.\n" + call("add", a=1) + "\n" + call("add", a=2)


def said(message: dict[str, Any]) -> tuple[str, str]:
    return message["content"], message.get("thinking", "")


def test_a_stream_of_a_chat(client: TestClient, engine: FakeEngine) -> None:
    *firsts, last = lines(client, model="tiny-test:latest")
    assert "".join(line["message"]["content"] for line in firsts) == "Hello wörld 👋"
    for line in firsts:
        assert line.keys() == {"model", "created_at", "message", "done"}
        assert (line["done"], line["message"]["role"]) == (False, "assistant")
    assert last.keys() == {"model", "created_at", "message", "done", "done_reason"} | COUNTS
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["prompt_eval_count"] == len(engine.prompt.encode())
    assert last["eval_count"] == 3
    assert last["model"] == "tiny-test:latest"
    age = datetime.now(UTC) - datetime.fromisoformat(last["created_at"])
    assert 0 <= age.total_seconds() < 60


def test_a_stream_of_a_prompt(client: TestClient) -> None:
    *firsts, last = lines(client, "/api/generate", prompt="hi")
    assert "".join(line["response"] for line in firsts) == "Hello wörld 👋"
    assert last.keys() == {"model", "created_at", "response", "done", "done_reason"} | COUNTS
    assert (last["response"], last["model"]) == ("", "tiny-test")


def test_thinking_and_whole_calls(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(THOUGHT_AND_CALLS)
    stream = lines(client, tools=[ADD])
    calls = [c for line in stream for c in line["message"].get("tool_calls", ())]
    assert [c["function"] for c in calls] == [
        {"index": 0, "name": "add", "arguments": {"a": 1}},
        {"index": 1, "name": "add", "arguments": {"a": 2}},
    ]
    assert len({c["id"] for c in calls}) == 2
    text = "".join(line["message"]["content"] for line in stream)
    thinking = "".join(line["message"].get("thinking", "") for line in stream)
    assert (text.strip(), thinking) == ("Sure.", "Well.")
    assert stream[-1]["done_reason"] == "stop"
    plain = ask(client, tools=[ADD])
    assert said(plain["message"]) == (text, thinking)
    assert [c["function"] for c in plain["message"]["tool_calls"]] == [c["function"] for c in calls]


def test_thinking_of_a_prompt(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>Well.</think>Sure.")
    plain = ask(client, "/api/generate", prompt="x")
    assert (plain["response"], plain["thinking"]) == ("Sure.", "Well.")


def test_a_cut_call_is_still_an_object(client: TestClient, engine: FakeEngine) -> None:
    cut = call("add", a=12345).partition("45")[0]
    engine.script = text_script(cut, FinishReason.LENGTH)
    plain = ask(client, tools=[ADD])
    assert plain["done_reason"] == "length"
    (made,) = plain["message"]["tool_calls"]
    assert made["function"]["arguments"] == {"INVALID_JSON": '{"a": 123'}


def play_logprobs(request: GenerateRequest) -> Iterable[RequestOutput]:
    def entry(text: str) -> LogprobEntry:
        top = (TopLogprob(98, "b", b"b", -0.5),) * (request.params.top_logprobs or 0)
        return LogprobEntry(97, text, text.encode(), -1.0, top, 1)

    yield output(request, delta("a", logprobs=[entry("a")]))
    last = delta("é", finish=FinishReason.STOP, logprobs=[entry("é")])
    yield output(request, last, finished=True)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/api/chat", {}),
        ("/api/generate", {"prompt": "x"}),
        ("/api/generate", {"prompt": "x", "raw": True}),
    ],
)
def test_logprobs(
    client: TestClient, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    engine.script = play_logprobs
    wanted = fields | {"logprobs": True, "top_logprobs": 1}
    whole = ask(client, path, **wanted)["logprobs"]
    top = {"token": "b", "logprob": -0.5, "bytes": [98]}
    assert whole == [
        {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": [top]},
        {"token": "é", "logprob": -1.0, "bytes": [195, 169], "top_logprobs": [top]},
    ]
    parts = [entry for line in lines(client, path, **wanted) for entry in line.get("logprobs", ())]
    assert parts == whole
    assert ask(client, path, **fields, logprobs=True)["logprobs"][0]["top_logprobs"] == []
    assert engine.requests[-1].params.top_logprobs == 0
    engine.script = text_script("ab")
    assert "logprobs" not in ask(client, path, **fields)
    assert engine.requests[-1].params.top_logprobs is None


def play_times(request: GenerateRequest) -> Iterable[RequestOutput]:
    """Half a second of the prompt, two seconds of text, in the clock of the server."""
    times = RequestTimings(10.0, 11.0, 11.5, None)
    yield msgspec.structs.replace(output(request, delta("a")), timings=times)
    times = RequestTimings(10.0, 11.0, 11.5, 13.5)
    last = output(request, delta("b", finish=FinishReason.STOP), finished=True)
    yield msgspec.structs.replace(last, timings=times)


def test_durations_are_nanoseconds_of_the_engine(client: TestClient, engine: FakeEngine) -> None:
    engine.script = play_times
    answer = ask(client)
    assert (answer["prompt_eval_duration"], answer["eval_duration"]) == (500_000_000, 2 * 10**9)
    assert 0 < answer["load_duration"] < answer["total_duration"] < 60 * 10**9


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_without_a_prompt_the_model_is_loaded(
    client: TestClient, engine: FakeEngine, path: str
) -> None:
    body = {"messages": []} if path == "/api/chat" else {"prompt": ""}
    for fields in ({}, body):
        answer = client.post(path, json={"model": "tiny-test", **fields}).json()
        del answer["created_at"]
        text = {"response": ""}
        if path == "/api/chat":
            text = {"message": {"role": "assistant", "content": ""}}  # type: ignore[dict-item]
        assert answer == {"model": "tiny-test", "done": True, "done_reason": "load"} | text
    assert engine.requests == []
    assert "stays loaded" in error(client, path, **body, keep_alive=0)
    assert "'nope'" in error(client, path, 404, **body, model="nope")


def test_an_error_in_a_stream_is_its_last_line(client: TestClient, engine: FakeEngine) -> None:
    engine.script = lambda request: [
        output(request, delta("first")),
        output(request, error="the engine broke"),
    ]
    first, last = lines(client)
    assert first["message"]["content"] == "first"
    assert last == {"error": "The server failed to process the request."}
    assert "failed" in error(client, status=500, stream=False)


def test_errors_before_a_stream_are_http(client: TestClient) -> None:
    available = "The model 'nope' does not exist here. Available: 'tiny-test'."
    assert error(client, status=404, model="nope") == available
    response = client.post("/api/chat", content=b"{")
    assert (response.status_code, response.json().keys()) == (400, {"error"})
    assert client.get("/api/chat").json().keys() == {"error"}
    assert client.get("/api/nothing").json().keys() == {"error"}


def test_keys_and_origins_are_checked(new_client: ClientFactory) -> None:
    client = new_client(api_key=["k"])
    for method, path in (("POST", "/api/chat"), ("GET", "/api/tags"), ("POST", "/api/pull")):
        response = client.request(method, path, json={"messages": [USER]})
        assert (response.status_code, response.json().keys()) == (401, {"error"}), path
    headers = {"Authorization": "Bearer k"}
    assert client.post("/api/chat", json={"messages": [USER]}, headers=headers).status_code == 200
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        response = new_client().post("/api/chat", json={"messages": [USER]}, headers=headers)
        assert (response.status_code, response.json().keys()) == (403, {"error"})


def test_lines_and_answers_match_the_document(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(THOUGHT_AND_CALLS)
    document: Document = client.get("/openapi.json").json()
    for path, fields in (("/api/chat", {"tools": [ADD]}), ("/api/generate", {"prompt": "x"})):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]
        schema = content["application/json"]["schema"]
        assert schema_problems(document, schema, ask(client, path, **fields)) == []
        schema = content["application/x-ndjson"]["x-event-schema"]
        for line in lines(client, path, **fields):
            assert schema_problems(document, schema, line) == []
        assert schema_problems(document, schema, {}) != []
    for path in ("/api/tags", "/api/ps", "/api/version"):
        answer = document["paths"][path]["get"]["responses"]["200"]["content"]
        schema = answer["application/json"]["schema"]
        assert schema_problems(document, schema, client.get(path).json()) == []
    answer = document["paths"]["/api/show"]["post"]["responses"]["200"]["content"]
    shown = client.post("/api/show", json={}).json()
    assert schema_problems(document, answer["application/json"]["schema"], shown) == []
    assert json.dumps(shown)
