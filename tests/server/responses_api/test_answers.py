"""Plain answers and streams of `/v1/responses`: items, events, usage and errors."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import GRAMMAR_FAILED, FinishReason, LogprobEntry, TopLogprob
from stonechat_server.responses_api.marks import decode_reasoning
from stonechat_server.streaming.sse import EventStream
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, Script, delta, output
from tests.server.messages_api.scripts import call, text_script
from tests.server.responses_api.answers import (
    SHELL,
    WEATHER,
    ask,
    body,
    both,
    check_response,
    custom_call,
    events_of,
    post,
    stream,
    text_of,
    texts_of,
)


def kinds(events: list[Any]) -> list[str]:
    """The types of events without `response.`, neighbouring equal ones once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]


def test_text_is_one_message(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello wörld 👋")
    answer = both(client, instructions="Be nice.")
    assert texts_of(answer["output"]) == [("message", "Hello wörld 👋")]
    (message,) = answer["output"]
    assert (message["role"], message["status"]) == ("assistant", "completed")
    assert message["content"][0]["annotations"] == []
    assert answer["status"] == "completed"
    assert answer["error"] is answer["incomplete_details"] is None
    assert answer["completed_at"] >= answer["created_at"]
    assert answer["store"] is True
    assert engine.prompt == (
        "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_usage_has_details(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>hm</think>Hello")
    usage = both(client)["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 16}
    assert usage["output_tokens"] == 8
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < 8
    assert usage["total_tokens"] == usage["input_tokens"] + 8


def test_the_answer_repeats_the_request(client: TestClient) -> None:
    fields = {
        "instructions": "Be nice.",
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "key",
        "reasoning": {"effort": "low", "summary": "auto"},
        "safety_identifier": "someone",
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}, "verbosity": "medium"},
        "tool_choice": {"type": "function", "name": "get_weather"},
        "tools": [{**WEATHER, "strict": True}, SHELL],
        "top_p": 0.25,
        "truncation": "auto",
        "user": "someone else",
    }
    assert {key: ask(client, **fields)[key] for key in fields} == fields


def test_defaults_are_filled_in(client: TestClient) -> None:
    answer = ask(client, tools=[WEATHER])
    assert answer["text"] == {"format": {"type": "text"}}
    assert answer["reasoning"] == {"effort": None, "summary": None}
    assert answer["tools"] == [{**WEATHER, "strict": None}]
    assert (answer["tool_choice"], answer["truncation"]) == ("auto", "disabled")
    assert (answer["temperature"], answer["top_p"], answer["parallel_tool_calls"]) == (1, 1, True)


def test_events_of_all_items_in_order(client: TestClient, engine: FakeEngine) -> None:
    calls = call("get_weather", city="Rome") + custom_call("shell", "ls")
    engine.script = text_script("<think>hm</think>I look.\n" + calls)
    events = stream(client, tools=[WEATHER, SHELL])
    assert kinds(events) == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "custom_tool_call_input.delta"),
        *("custom_tool_call_input.done", "output_item.done"),
        "completed",
    ]
    answer = both(client, tools=[WEATHER, SHELL])
    assert texts_of(answer["output"]) == [
        ("reasoning", "hm"),
        ("message", "I look."),
        ("function_call", '{"city": "Rome"}'),
        ("custom_tool_call", "ls"),
    ]
    function, custom = answer["output"][2:]
    assert (function["name"], custom["name"]) == ("get_weather", "shell")
    assert function["call_id"] != custom["call_id"]
    assert len({item["id"] for item in answer["output"]}) == 4


def test_snapshots_do_not_change_later(client: TestClient) -> None:
    first, second = stream(client)[:2]
    assert first["response"] == second["response"]
    assert (first["response"]["status"], first["response"]["output"]) == ("in_progress", [])
    assert "usage" not in first["response"]


def test_reasoning_is_content_or_the_summary(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>hm hm</think>Hello")
    reasoning = both(client)["output"][0]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm hm"}]
    assert reasoning["summary"] == []
    fields = {"reasoning": {"summary": "auto"}}
    reasoning = both(client, **fields)["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm hm"}]
    assert "content" not in reasoning
    assert kinds(stream(client, **fields))[2:8] == [
        *("output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"),
        *("reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"),
    ]


def test_encrypted_reasoning_only_if_asked_for(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>hm 👋</think>Hello")
    assert "encrypted_content" not in both(client)["output"][0]
    answer = both(client, include=["reasoning.encrypted_content"])
    assert decode_reasoning(answer["output"][0]["encrypted_content"]) == "hm 👋"


def test_no_text_is_an_empty_message(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("")
    assert texts_of(both(client)["output"]) == [("message", "")]


def test_a_limit_makes_the_answer_incomplete(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello wor", FinishReason.LENGTH)
    answer = both(client)
    assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"


def test_a_limit_in_a_call_makes_the_call_incomplete(
    client: TestClient, engine: FakeEngine
) -> None:
    text = call("get_weather", city="Rome")
    engine.script = text_script(text[: text.index("Rome") + 2], FinishReason.LENGTH)
    answer = both(client, tools=[WEATHER])
    assert [item["status"] for item in answer["output"]] == ["incomplete"]
    assert answer["output"][0]["arguments"].startswith('{"city": "Ro')


def test_a_failed_grammar_in_a_stream_is_the_requests_fault(
    client: TestClient, engine: FakeEngine
) -> None:
    failure = f"{GRAMMAR_FAILED}: it is too complex"
    engine.script = lambda request: [
        output(request, delta("Hel")),
        output(request, error=failure, finished=True),
    ]
    last = post(client, stream=True).text.split("\n\n")[-2]
    error = json.loads(last.partition("data: ")[2])["response"]["error"]
    assert (error["code"], "too complex" in error["message"]) == ("invalid_prompt", True)


def test_a_limit_in_reasoning_leaves_no_message(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("<think>hm", FinishReason.LENGTH)
    assert texts_of(both(client)["output"]) == [("reasoning", "hm")]


@pytest.mark.parametrize("fields", [{"include": ["message.output_text.logprobs"]}, {}])
def test_logprobs_are_those_of_the_text(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    def entry(token: str) -> LogprobEntry:
        data = token.encode()
        return LogprobEntry(1, token, data, -0.5, (TopLogprob(2, "x", b"x", -1.5),))

    def play(request: Any) -> list[Any]:
        first = delta("Hel", logprobs=(entry("Hel"),))
        held_back = delta("", logprobs=(entry("l"),))
        second = delta("lo", logprobs=(entry("o"),))
        last = delta("", finish=FinishReason.STOP, logprobs=(entry("end"),))
        steps = [first, held_back, second, last]
        return [output(request, step, finished=step is last) for step in steps]

    engine.script = play
    answer = both(client, top_logprobs=1, **fields)
    logprobs = answer["output"][0]["content"][0]["logprobs"]
    assert [entry["token"] for entry in logprobs] == ["Hel", "l", "o", "end"]
    assert logprobs[0]["top_logprobs"] == [{"token": "x", "logprob": -1.5, "bytes": [120]}]
    assert engine.requests[-1].params.top_logprobs == 1
    events = [event for event in stream(client, top_logprobs=1) if "logprobs" in event]
    deltas = [event["logprobs"] for event in events if event["type"].endswith("delta")]
    assert [entry for entries in deltas for entry in entries] == logprobs
    assert all(event["logprobs"] in ([], logprobs) for event in events if "delta" not in event)


def test_no_logprobs_unless_asked_for(client: TestClient, engine: FakeEngine) -> None:
    assert both(client)["output"][0]["content"][0]["logprobs"] == []
    assert engine.requests[-1].params.top_logprobs is None


def test_obfuscation_pads_deltas(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("Hello")
    events = stream(client, stream_options={"include_obfuscation": True})
    deltas = [event for event in events if "delta" in event]
    assert [(len(d["delta"]) + len(d["obfuscation"])) % 16 for d in deltas] == [0, 0]
    assert not any("obfuscation" in event for event in stream(client))


def test_an_engine_failure_ends_the_stream_with_failed(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: [output(request, delta("Hel")), RuntimeError("secret")]
    response = post(client, stream=True)
    *parts, _ = response.text.split("\n\n")
    last = json.loads(parts[-1].split("\n")[1].removeprefix("data: "))
    assert last["type"] == "response.failed"
    assert last["response"]["store"] is False
    assert last["sequence_number"] == len(parts) - 1
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"
    assert "secret" not in response.text
    check_response(last["response"])


def test_an_engine_failure_before_the_first_event_is_an_error(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.script = lambda request: [RuntimeError("secret")]
    for fields in ({}, {"stream": True}):
        response = post(client, **fields)
        assert response.status_code == 500
        assert error_of(response)["code"] == "server_error"


@pytest.fixture
def after_a_comment(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], Script]:
    """Makes a script wait until a stream has sent a comment."""
    comments = []
    original = EventStream._send_with_timeout

    async def noted(stream: EventStream, *sent: Any) -> None:
        await original(stream, *sent)
        comments.append(sent)

    monkeypatch.setattr(EventStream, "_send_with_timeout", noted)

    def delayed(script: Script) -> Script:
        def play(request: Any) -> Iterator[Any]:
            while not comments:
                yield 0.005
            yield from script(request)

        return play

    return delayed


def test_a_failure_before_the_first_event_of_a_started_stream(
    new_client: ClientFactory, engine: FakeEngine, after_a_comment: Callable[[Script], Script]
) -> None:
    engine.script = after_a_comment(lambda request: [RuntimeError("secret")])
    response = post(new_client(keep_alive_interval=0.01), stream=True)
    parts = [part for part in response.text.split("\n\n") if part.startswith("event: ")]
    assert [part.split("\n")[0] for part in parts] == [
        *("event: response.created", "event: response.in_progress", "event: response.failed")
    ]


@pytest.mark.parametrize("num_before", [0, 1])
def test_an_output_that_fails_leaves_no_gap(
    new_client: ClientFactory,
    engine: FakeEngine,
    after_a_comment: Callable[[Script], Script],
    num_before: int,
) -> None:
    """Its events are lost, with their numbers, and the client has not seen its items."""

    def play(request: Any) -> list[Any]:
        last = output(
            request,
            *(delta("<think>hm</think>"), delta("Hello")),
            delta("", finish=FinishReason.ABORT),
            finished=True,
        )
        return [*[output(request, delta("a"))] * num_before, last]

    engine.script = after_a_comment(play)
    one_by_one = {"include_obfuscation": True}
    client = new_client(keep_alive_interval=0.01)
    response = post(client, stream=True, stream_options=one_by_one, tools=[WEATHER])
    parts = [part for part in response.text.split("\n\n") if part.startswith("event: ")]
    events = [json.loads(part.split("\n")[1].removeprefix("data: ")) for part in parts]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert kinds(events[:2]) == ["created", "in_progress"]
    assert kinds(events)[-1] == "failed"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done


def test_the_url_without_v1(client: TestClient) -> None:
    response = client.post("/responses", json=body(stream=True))
    assert text_of(events_of(response)[-1]["response"]["output"][0]) == "Hello wörld 👋"
