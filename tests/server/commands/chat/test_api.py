"""Answers of servers that do not keep to the protocol, as the chat reports them."""

import asyncio
import json
from collections.abc import Callable

import pytest

from stonechat_server.client.http import HttpAnswer, HttpClient, TransportError
from stonechat_server.commands.chat.api import ChatAnswer, ChatApi, ChatError

Reply = tuple[int, bytes] | Exception


class Client(HttpClient):
    """Gives one reply to every request."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("http://localhost", {})
        self.reply = reply

    async def request(
        self, method: str, path: str, body: bytes, on_body: Callable[..., None], timeout: float
    ) -> HttpAnswer:
        await asyncio.sleep(0)
        if isinstance(self.reply, Exception):
            raise self.reply
        on_body(self.reply[1], 1.0)
        return HttpAnswer(self.reply[0], {"x-ignored-params": "top_q"}, 0.0)


def api(reply: Reply) -> ChatApi:
    return ChatApi(Client(reply))


def models(reply: Reply) -> list[str]:
    return asyncio.run(api(reply).models())


def last_answer(reply: Reply) -> ChatAnswer:
    async def main() -> ChatAnswer:
        answers = [answer async for answer in api(reply).stream("m", [], {})]
        return answers[-1]

    return asyncio.run(main())


FAILURES = [
    (TransportError("connection refused"), "connection refused"),
    ((500, b"<html>"), "500: <html>"),
    ((500, b"[1]"), r"500: \[1\]"),
    ((400, b'{"error": {"message": "too hot", "param": "temperature"}}'), r"400: too hot \(temp"),
    ((400, b'{"error": {"message": "no"}}'), "400: no$"),
]


@pytest.mark.parametrize(("reply", "text"), [*FAILURES, (TimeoutError(), "does not answer")])
def test_a_list_of_models_that_fails(reply: Reply, text: str) -> None:
    with pytest.raises(ChatError, match=text):
        models(reply)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"data": 3}', b'{"data": [{"name": "x"}]}'])
def test_a_list_of_models_that_is_not_one(body: bytes) -> None:
    with pytest.raises(ChatError, match="is no list of models"):
        models((200, body))


def test_a_list_of_models() -> None:
    assert models((200, b'{"data": [{"id": "a"}, {"id": "b"}]}')) == ["a", "b"]


def test_models_that_say_that_they_take_no_images_or_no_audio() -> None:
    cards = [
        {"id": "unknown", "input_modalities": None},
        {"id": "takes", "input_modalities": ["text", "image", "audio"]},
        {"id": "sees", "input_modalities": ["text", "image"]},
        {"id": "reads", "input_modalities": ["text"]},
        {"id": "why", "input_modalities": ["text"], "stonechat": {"image_refusal": "no Pillow"}},
    ]
    found = api((200, json.dumps({"data": cards}).encode()))
    asyncio.run(found.models())
    assert found.refusals == {
        ("sees", "audio"): "sees takes no audio",
        ("reads", "image"): "reads takes no images",
        ("reads", "audio"): "reads takes no audio",
        ("why", "image"): "why takes no images: no Pillow",
        ("why", "audio"): "why takes no audio",
    }


@pytest.mark.parametrize(("reply", "text"), [*FAILURES, (TimeoutError(), "no complete answer")])
def test_an_answer_that_fails(reply: Reply, text: str) -> None:
    with pytest.raises(ChatError, match=text):
        last_answer(reply)


def test_an_answer_with_an_error_in_its_stream() -> None:
    body = b'data: {"error": {"message": "the step failed", "type": "server_error"}}\n\n'
    with pytest.raises(ChatError, match="the step failed"):
        last_answer((200, body))


def test_a_whole_answer() -> None:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {"index": 0, "delta": {"content": "Hi"}, "logprobs": None, "finish_reason": "stop"}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4, "image_tokens": 3},
    }
    events = [{**chunk, "choices": [delta]}, {**chunk, "choices": [], "usage": usage}]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    answer = last_answer((200, lines.encode()))
    assert (answer.text, answer.finish_reason, answer.ignored) == ("Hi", "stop", "top_q")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 1)
    assert (answer.usage.details.cached_tokens, answer.usage.details.image_tokens) == (4, 3)
