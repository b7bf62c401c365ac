"""Streams as ASGI messages: the status line, keep-alives, errors, clients that disconnect."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from stonechat_models import EngineDeadError, FinishReason, GenerateRequest
from stonechat_server.app import create_app
from stonechat_server.chat_api.writer import ChunkWriter
from stonechat_server.errors import server_error, to_api_error
from stonechat_server.observability.access_log import REQUESTS_A_ROUND
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.settings import Settings
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead
from stonechat_server.streaming.sse import EventStream
from tests.server.bodies import URL, body
from tests.server.fake_engine import ByteTokenizer, FakeEngine, delta, output, text_script
from tests.virtual_time import run

Message = dict[str, Any]
HEAD = CompletionHead(id="id", created=0, model="m", system_fingerprint="")


async def exchange(
    engine: FakeEngine,
    request: Message,
    *,
    is_gone: Callable[[list[Message]], Awaitable[None]] | None = None,
    leaves_at_once: bool = False,
    **settings: Any,
) -> list[Message]:
    """The messages that the server sends. The client disconnects when `is_gone` returns."""
    app = create_app(Settings(**settings), engine)
    async with app.router.lifespan_context(app), asyncio.timeout(20):
        return await exchange_with(app, request, is_gone=is_gone, leaves_at_once=leaves_at_once)


async def exchange_with(
    app: FastAPI,
    request: Message,
    *,
    is_gone: Callable[[list[Message]], Awaitable[None]] | None = None,
    leaves_at_once: bool = False,
) -> list[Message]:
    sent: list[Message] = []
    inbox = [{"type": "http.request", "body": json.dumps(request).encode(), "more_body": False}]

    async def receive() -> Message:
        if leaves_at_once:
            return {"type": "http.disconnect"}
        if inbox:
            return inbox.pop()
        await (is_gone(sent) if is_gone else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": URL,
        "raw_path": URL.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return sent


def bodies_of(sent: list[Message]) -> list[bytes]:
    return [message["body"] for message in sent if message["type"] == "http.response.body"]


async def after_two_writes(sent: list[Message]) -> None:
    while len(bodies_of(sent)) < 2:
        await asyncio.sleep(0.001)


async def soon(sent: list[Message]) -> None:
    await asyncio.sleep(0.05)


def test_all_events_of_a_step_are_one_write() -> None:
    engine = FakeEngine(script=text_script("a", "b"))
    sent = run(exchange(engine, body(stream=True, n=4)))
    assert [write.count(b"data: ") for write in bodies_of(sent)] == [8, 8, 1, 0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_reaches_the_engine_before_the_next_is_prepared(stream: bool) -> None:
    """Many may come at once. The engine begins with the first while the others are prepared."""
    engine = FakeEngine()
    running_at_encode: list[int] = []

    class Tokenizer(ByteTokenizer):
        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            running_at_encode.append(len(engine.requests))
            return super().encode(text, add_special_tokens)

    engine.tokenizer = Tokenizer()

    async def exchange_all() -> None:
        app = create_app(Settings(), engine)
        async with app.router.lifespan_context(app):
            await exchange_with(app, body(stream=stream))
            running_at_encode.clear()
            await asyncio.gather(*[exchange_with(app, body(stream=stream)) for _ in range(4)])

    run(exchange_all())
    assert running_at_encode == [1, 2, 3, 4]


def test_only_a_few_requests_begin_in_a_round_of_the_event_loop() -> None:
    """Streams that run get their tokens in between."""
    rounds, rounds_of_requests = 0, []

    def script(request: GenerateRequest) -> Iterable[Any]:
        rounds_of_requests.append(rounds)
        return text_script("a")(request)

    async def exchange_all() -> None:
        nonlocal rounds

        async def count_rounds() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        app = create_app(Settings(), FakeEngine(script=script))
        async with app.router.lifespan_context(app):
            counting = asyncio.create_task(count_rounds())
            await asyncio.gather(*[exchange_with(app, body(stream=True)) for _ in range(12)])
            counting.cancel()

    run(exchange_all())
    assert len(rounds_of_requests) == 12
    assert max(Counter(rounds_of_requests).values()) <= REQUESTS_A_ROUND, rounds_of_requests


@pytest.mark.parametrize("n", [1, 4])
def test_a_client_that_leaves_a_stream_aborts_the_request(n: int) -> None:
    engine = FakeEngine(script=text_script(*["word "] * 1000, pause=0.005))
    sent = run(exchange(engine, body(stream=True, n=n), is_gone=after_two_writes))
    assert engine.aborted == [engine.requests[0].request_id]
    assert engine.num_running == 0
    assert len(bodies_of(sent)) < 20


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_token_aborts_the_request(stream: bool) -> None:
    engine = FakeEngine(script=text_script("a", pause=10.0))
    sent = run(exchange(engine, body(stream=stream), is_gone=soon))
    assert engine.aborted == [engine.requests[0].request_id]
    assert engine.num_running == 0
    assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [499]
    assert not any(write for write in bodies_of(sent))


def test_a_client_that_disconnects_before_its_body_is_not_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = FakeEngine()
    sent = run(exchange(engine, {}, leaves_at_once=True))
    assert [m["status"] for m in sent if m["type"] == "http.response.start"] == [499]
    assert not engine.requests
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_silence_is_filled_with_comments() -> None:
    engine = FakeEngine(script=text_script("a", "b", pause=0.35))
    sent = run(exchange(engine, body(stream=True), keep_alive_interval=0.1))
    writes = bodies_of(sent)
    assert writes[0] == writes[1] == b": keep-alive\n\n"
    assert writes.count(b": keep-alive\n\n") >= 4
    assert sent[0]["status"] == 200
    assert writes[-2] == b"data: [DONE]\n\n"


def test_a_stream_that_is_not_silent_has_no_comments() -> None:
    engine = FakeEngine(script=text_script(*"abcdefgh", pause=0.05))
    sent = run(exchange(engine, body(stream=True), keep_alive_interval=0.25))
    assert [write.count(b"data: ") for write in bodies_of(sent)] == [2, 1, 1, 1, 1, 1, 1, 2, 1, 0]
    assert not any(b"keep-alive" in write for write in bodies_of(sent))


def test_keep_alives_can_be_switched_off() -> None:
    engine = FakeEngine(script=text_script("a", pause=0.2))
    sent = run(exchange(engine, body(stream=True), keep_alive_interval=0))
    assert not any(b"keep-alive" in write for write in bodies_of(sent))


def failing(error: Exception, pause: float = 0.0) -> Callable[[GenerateRequest], list[Any]]:
    return lambda request: [output(request, delta("a")), pause, error]


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineDeadError("secret"), "engine_dead"), (KeyError("secret"), "server_error")],
)
def test_an_error_after_the_first_byte_is_an_event(error: Exception, code: str) -> None:
    sent = run(exchange(FakeEngine(script=failing(error)), body(stream=True)))
    assert sent[0]["status"] == 200
    text = b"".join(bodies_of(sent)).decode()
    last = json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == code
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert "[DONE]" not in text
    assert "secret" not in text


def test_an_error_after_a_comment_is_an_event_too() -> None:
    engine = FakeEngine(script=lambda request: [0.3, EngineDeadError("x")])
    sent = run(exchange(engine, body(stream=True), keep_alive_interval=0.1))
    assert sent[0]["status"] == 200
    assert b'"code":"engine_dead"' in b"".join(bodies_of(sent))


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_choice_never_looks_complete(reason: FinishReason, stream: bool) -> None:
    def script(request: GenerateRequest) -> list[Any]:
        return [
            output(request, delta("a")),
            output(request, delta("", finish=reason), finished=True, error="nan in layer 3"),
        ]

    sent = run(exchange(FakeEngine(script=script), body(stream=stream)))
    text = b"".join(bodies_of(sent))
    assert sent[0]["status"] == (200 if stream else 500)
    assert b'"error":{' in text
    assert b"layer" not in text


def test_the_text_arrives_whole_and_in_order() -> None:
    words = [f"w{i} " for i in range(50)]
    sent = run(exchange(FakeEngine(script=text_script(*words)), body(stream=True)))
    text = b"".join(bodies_of(sent)).decode()
    contents = [
        json.loads(part[6:])["choices"][0]["delta"].get("content", "")
        for part in text.split("\n\n")
        if part.startswith("data: {")
    ]
    assert "".join(contents) == "".join(words)


class Chunks:
    """Yields these chunks, each as a step, and sleeps for the numbers between them."""

    def __init__(self, *items: Any) -> None:
        self.is_closed = False
        self.steps = self._play(items)

    async def _play(self, items: tuple[Any, ...]) -> AsyncGenerator[list[Any], None]:
        try:
            for item in items:
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield [item]
        finally:
            self.is_closed = True


async def serve(
    chunks: Chunks,
    block: Callable[[Message], Awaitable[None]] | None = None,
    is_gone: Callable[[], Awaitable[Any]] | None = None,
    keep_alive: float = 0.0,
    write_timeout: float = 60.0,
) -> list[Message]:
    """The messages that an `EventStream` sends. Each write lasts until `block` returns."""
    sent: list[Message] = []

    async def receive() -> Message:
        await (is_gone() if is_gone else asyncio.Event().wait())
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if block is not None:
            await block(message)
        sent.append(message)

    request = ChatCompletionRequest.model_construct(messages=[], stream=True)
    writer = ChunkWriter(HEAD, AnswerReader([], ["id"]), request, [])

    def encode_error(error: Exception) -> bytes:
        return writer.encode_error(to_api_error(error) or server_error(), "req-1")

    stream = EventStream(
        chunks.steps,
        writer,
        encode_error,
        keep_alive=keep_alive,
        write_timeout=write_timeout,
        headers={"x-test": "1"},
    )
    async with asyncio.timeout(30):
        await stream({"type": "http", "method": "POST"}, receive, send)
    return sent


def stuck_at(text: bytes) -> Callable[[Message], Awaitable[None]]:
    """Block for ever in the write of a piece that is equal to `text`."""

    async def block(message: Message) -> None:
        if message.get("body") == text:
            await asyncio.Event().wait()

    return block


def test_the_bytes_and_headers_of_a_stream() -> None:
    sent = run(serve(Chunks({"text": "ä\n"}, {"text": ""})))
    assert sent[0]["type"] == "http.response.start"
    assert dict(sent[0]["headers"]) == {
        b"x-test": b"1",
        b"cache-control": b"no-store",
        b"x-accel-buffering": b"no",
        b"content-type": b"text/event-stream; charset=utf-8",
    }
    first = 'data: {"text":"ä\\n"}\n\n'.encode()
    assert bodies_of(sent) == [first, b'data: {"text":""}\n\n', b"data: [DONE]\n\n", b""]
    assert [message["more_body"] for message in sent[1:]] == [True, True, True, False]


@pytest.mark.parametrize("keep_alive", [0.0, 60.0])
def test_an_error_before_the_first_chunk_leaves_the_answer_open(keep_alive: float) -> None:
    sent: list[Message] = []

    async def block(message: Message) -> None:
        sent.append(message)

    with pytest.raises(ValueError, match="too early"):
        run(serve(Chunks(0.05, ValueError("too early")), block, keep_alive=keep_alive))
    assert not sent


@pytest.mark.parametrize(
    ("text", "keep_alive"),
    [(b"data: 2\n\n", 0.0), (b"data: 2\n\n", 0.1), (b": keep-alive\n\n", 0.1),
     (b"data: [DONE]\n\n", 0.0), (b"", 0.0)],
)  # fmt: skip
def test_a_stream_whose_client_stops_reading_is_closed(text: bytes, keep_alive: float) -> None:
    silence = 60.0 if text.startswith(b":") else 0.0
    chunks = Chunks(1, silence, 2)
    sent = run(serve(chunks, stuck_at(text), keep_alive=keep_alive, write_timeout=0.3))
    assert chunks.is_closed
    assert bodies_of(sent)[0] == b"data: 1\n\n"
    assert text not in bodies_of(sent)


@pytest.mark.parametrize("text", [b"data: 2\n\n", b"data: [DONE]\n\n", b""])
def test_a_client_that_leaves_during_a_write_closes_the_stream(text: bytes) -> None:
    chunks = Chunks(1, 2)
    sent = run(serve(chunks, stuck_at(text), is_gone=lambda: asyncio.sleep(0.1)))
    assert chunks.is_closed
    assert text not in bodies_of(sent)


def test_a_slow_reader_gets_everything_in_order_and_no_comments() -> None:
    async def block(message: Message) -> None:
        await asyncio.sleep(0.3)

    sent = run(serve(Chunks(*range(3)), block, keep_alive=0.1, write_timeout=5.0))
    assert sent[0]["type"] == "http.response.start"
    assert b"".join(bodies_of(sent)) == b"data: 0\n\ndata: 1\n\ndata: 2\n\ndata: [DONE]\n\n"


def test_a_chunk_waits_for_the_comment_that_sends_the_status_line() -> None:
    async def block(message: Message) -> None:
        if message["type"] == "http.response.start":
            await asyncio.sleep(0.5)

    sent = run(serve(Chunks(0.3, 1), block, keep_alive=0.1))
    assert sent[0]["type"] == "http.response.start"
    assert bodies_of(sent)[:2] == [b": keep-alive\n\n", b"data: 1\n\n"]


def test_the_library_does_not_cut_streams_at_a_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would cut them when uvicorn is told to exit, which the drain's own clock decides."""
    monkeypatch.setattr(AppStatus, "should_exit", True)
    sent = run(serve(Chunks(1, 0.2, 2)))
    assert bodies_of(sent)[-2:] == [b"data: [DONE]\n\n", b""]
