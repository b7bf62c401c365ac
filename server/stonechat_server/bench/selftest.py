"""Measures the load generator alone, against a source that only writes ready-made chunks."""

import asyncio
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

from stonechat_server.bench.load import run_closed
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.http_target import HttpTarget
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.bench.targets.workload import SyntheticWorkload
from stonechat_server.client.http import HttpClient

REQUIRED_TOKENS_PER_SECOND = 20_000
NUM_STREAMS = 32
TOKENS_PER_STREAM = 1_000

_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_COMMON = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"source","system_fingerprint":"fp_0123456789","choices":'
)
_USAGE = b',"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}'


def _event(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _token_event(number: int) -> bytes:
    choice = b'[{"index":0,"delta":{"content":" word%d"},"logprobs":null,"finish_reason":null}]'
    return _event(_COMMON + choice % number + b',"usage":null}')


def _last_events(num_tokens: int) -> bytes:
    finish = b'[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null}'
    usage = _COMMON + b"[]" + _USAGE % (num_tokens, num_tokens + 9)
    return _event(_COMMON + finish) + _event(usage) + _event(b"[DONE]") + b"0\r\n\r\n"


class _Source(asyncio.Protocol):
    """Answers every request with the same stream, one write per token as in a server's steps."""

    def __init__(self, events: list[bytes], last: bytes) -> None:
        self._events = events
        self._last = last
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if separator and len(body) >= length:
            self._buffer = b""
            self._transport.write(_HEAD)
            self._step(0)

    def _step(self, number: int) -> None:
        if self._transport.is_closing():
            return
        if number == len(self._events):
            self._transport.write(self._last)
            return
        self._transport.write(self._events[number])
        asyncio.get_running_loop().call_soon(self._step, number + 1)


async def _serve(ready: Connection) -> None:
    events = [_token_event(number) for number in range(TOKENS_PER_STREAM)]
    last = _last_events(TOKENS_PER_STREAM)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Source(events, last), "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _source_process(ready: Connection) -> None:
    asyncio.run(_serve(ready))


@dataclass(frozen=True, slots=True)
class GeneratorSpeed:
    """The speed of the load generator.

    `tokens_per_second` is measured in wall time, with the source on the same machine;
    `tokens_per_core_second` in the processor time of the generator alone.
    """

    num_tokens: int
    tokens_per_second: float
    tokens_per_core_second: float


def measure_generator(num_requests: int = 4 * NUM_STREAMS) -> GeneratorSpeed:
    """Read SSE chunks from a local source in another process, as fast as possible.

    Raises BenchError if the source does not start or a stream is incomplete.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_source_process, args=(sender,), daemon=True)
    process.start()
    try:
        if not receiver.poll(30):
            raise BenchError("the local source did not start")
        return asyncio.run(_drive(int(receiver.recv()), num_requests))
    finally:
        process.terminate()
        process.join()


async def _drive(port: int, num_requests: int) -> GeneratorSpeed:
    settings = BenchSettings(base_url=f"http://127.0.0.1:{port}/v1", model="source")
    async with HttpClient(settings.base_url, {}) as client:
        target = HttpTarget(client, settings, model="source")
        workload = SyntheticWorkload(64, 0.0, 0)
        started = time.perf_counter()
        run = await run_closed(target, workload, range(num_requests), NUM_STREAMS, lambda _: None)
        seconds = time.perf_counter() - started
    complete_records = [r for r in run.records if r.done and r.num_chunks == TOKENS_PER_STREAM]
    if len(complete_records) != num_requests:
        errors = {record.error for record in run.records if record.error}
        raise BenchError(f"{num_requests - len(complete_records)} streams are incomplete: {errors}")
    num_tokens = num_requests * TOKENS_PER_STREAM
    return GeneratorSpeed(num_tokens, num_tokens / seconds, num_tokens / run.cpu_seconds)
