"""What a benchmark finds out about a server, with a client that the tests script."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.http_target import HttpTarget
from stonechat_server.bench.targets.target import BenchError, words_of_prompt
from stonechat_server.bench.targets.workload import Prompt
from stonechat_server.client.http import HttpAnswer, HttpClient, TransportError

Reply = tuple[int, bytes] | Exception


class Client(HttpClient):
    """Answers each request with `reply`, and keeps the bodies."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__("http://localhost", {})
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []

    async def request(
        self, method: str, path: str, body: bytes, on_body: Callable[..., None], timeout: float
    ) -> HttpAnswer:
        fields = json.loads(body or b"{}")
        self.bodies.append(fields)
        reply = self.reply(fields)
        if isinstance(reply, Exception):
            raise reply
        on_body(reply[1], 1.0)
        return HttpAnswer(reply[0], {}, 0.0)


def target_of(reply: Callable[[dict[str, Any]], Reply], **settings: Any) -> HttpTarget:
    return HttpTarget(Client(reply), BenchSettings(**settings), model="m")


def discovered(reply: Reply, **settings: Any) -> HttpTarget:
    target = target_of(lambda _: reply, **settings)
    asyncio.run(target.discover())
    return target


def models(*cards: dict[str, Any]) -> Reply:
    return 200, json.dumps({"object": "list", "data": cards}).encode()


def test_the_model_is_the_first_of_the_list_or_the_one_asked_for() -> None:
    listed = models({"id": "a", "stonechat": {"dtype": "bfloat16"}}, {"id": "b"})
    first = discovered(listed)
    assert (first.model, first.facts) == ("a", {"dtype": "bfloat16"})
    second = discovered(listed, model="b")
    assert (second.model, second.facts) == ("b", {})
    other = discovered(listed, model="c")
    assert (other.model, other.facts) == ("c", {})


def test_a_server_without_a_list_needs_a_name() -> None:
    assert discovered((404, b"nothing"), model="named").model == "named"
    with pytest.raises(BenchError, match=r"lists no models .status 404.: correct the URL"):
        discovered((404, b"nothing"))
    with pytest.raises(BenchError, match="needs one: give it with --api-key or the variable"):
        discovered((401, b"no key"))
    assert discovered((401, b"no key"), model="named").model == "named"
    with pytest.raises(BenchError, match="lists no model"):
        discovered(models())


@pytest.mark.parametrize("body", [b"<html>", b'{"data": [{"name": "x"}]}', b"[]"])
def test_a_list_that_is_not_one_is_an_error(body: bytes) -> None:
    with pytest.raises(BenchError, match="did not return a list of models"):
        discovered((200, body))


def test_a_server_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(BenchError, match="refused"):
        discovered(TransportError("refused"))
    with pytest.raises(BenchError, match="did not answer in time"):
        discovered(TimeoutError())


def stream(num_prompt_tokens: int) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {"index": 0, "delta": {"content": " x"}, "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": 1, "total_tokens": 0}
    events = [{**chunk, "choices": [delta]}, {**chunk, "choices": [], "usage": usage}]
    lines = [f"data: {json.dumps(event)}\n\n" for event in events]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


def words(body: dict[str, Any]) -> int:
    return sum(len(message["content"].split()) for message in body["messages"])


@pytest.mark.parametrize(("per_word", "overhead"), [(1, 7), (2, 20)])
def test_calibration_finds_the_words_of_a_prompt(per_word: int, overhead: int) -> None:
    target = target_of(lambda body: (200, stream(per_word * words(body) + overhead)))
    num_words = asyncio.run(words_of_prompt(target, 100))
    assert per_word * num_words + overhead == pytest.approx(100, abs=per_word)


def test_a_server_that_counts_nothing_gets_one_word_per_token() -> None:
    target = target_of(lambda body: (200, stream(0)))
    assert asyncio.run(words_of_prompt(target, 100)) == 100


def test_a_template_longer_than_the_prompt_is_an_error() -> None:
    target = target_of(lambda body: (200, stream(words(body) + 500)))
    with pytest.raises(BenchError, match="alone takes about 500 tokens"):
        asyncio.run(words_of_prompt(target, 100))


@pytest.mark.parametrize("status", [400, 422])
def test_fields_that_the_server_refuses_are_dropped(status: int) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        for name in ("stream_options", "temperature"):
            if name in body:
                return status, f"unknown field {name}".encode()
        if "ignore_eos" in body:
            return status, b"bad request"  # it does not say what is bad
        return 200, stream(words(body))

    target = target_of(reply)
    asyncio.run(words_of_prompt(target, 100))
    assert target.dropped == {"stream_options", "temperature", "ignore_eos"}
    prompt = Prompt([{"role": "user", "content": "x"}])
    assert target._expected_tokens(prompt, None) is None
    assert not target.dropped & json.loads(target.body(prompt)).keys()


def test_a_refusal_that_no_field_explains_is_an_error() -> None:
    for settings in ({}, {"ignore_eos": False}):
        target = target_of(lambda body: (400, b"bad request"), **settings)
        with pytest.raises(BenchError, match="calibration request failed: HTTP 400: bad request"):
            asyncio.run(words_of_prompt(target, 100))


@pytest.mark.parametrize(
    ("failure", "text"),
    [(TransportError("cut"), "cut"), (TimeoutError(), "no complete answer in 5 s")],
)
def test_a_failed_request_is_recorded(failure: Exception, text: str) -> None:
    target = target_of(lambda _: failure, timeout=5.0)
    prompt = Prompt([{"role": "user", "content": "x"}])
    measured = asyncio.run(target.measure(prompt, origin=0.0))
    assert measured.record.error == text
    assert measured.record.status == 0
    assert measured.text == ""
    assert measured.gaps == []


def test_fields_of_the_settings_are_sent() -> None:
    target = target_of(lambda _: (200, b""), ignore_eos=False, extra_body={"top_k": 1, "n": 2})
    prompt = Prompt([{"role": "user", "content": "x"}])
    fields = json.loads(target.body(prompt, num_tokens=3))
    assert "ignore_eos" not in fields
    assert (fields["top_k"], fields["n"], fields["max_tokens"]) == (1, 2, 3)
    assert target._expected_tokens(prompt, None) is None
