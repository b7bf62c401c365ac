"""Measure what HTTP costs: the server's CPU microseconds per token, with an engine without a model.

The server, the engine process and this client are three processes. The engine emits the tokens of a
text, `--rate` tokens a second over all streams. Each scenario reports the server's CPU time (of the
event loop's thread, and of the thread that reads the engine's frames), the throughput, and with
`--profile` the share of each part. Linux only: CPU time is read from /proc.

    PYTHONPATH=server:models:scripts/bench .venv/bin/python scripts/bench/http_overhead.py --profile
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from http_overhead_server import RATE

HERE = Path(__file__).resolve().parent
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"type": "object", "properties": {}}},
}
SCENARIOS: dict[str, dict[str, object]] = {
    "stream": {"stream": True},
    "stream, logprobs": {"stream": True, "logprobs": True, "top_logprobs": 5},
    "stream, tools": {"stream": True, "tools": [TOOL]},
    "stream, 4 stop strings": {"stream": True, "stop": ["\n\nUser:", "<END>", "###", "STOP"]},
    "not streamed": {"stream": False},
}


@dataclass
class Result:
    """The figures of one scenario. Microseconds are CPU time of the server."""

    scenario: str
    offered_a_second: float
    tokens_a_second: float
    events_a_second: float
    microseconds_a_token: float
    microseconds_an_event: float | None
    reader_microseconds_a_token: float
    parts: dict[str, float]


@dataclass
class Server:
    process_id: int
    port: int

    def cpu(self) -> tuple[float, float]:
        """Return CPU seconds of the first thread, which runs the event loop, and of all others."""
        first, others = 0.0, 0.0
        for task in Path(f"/proc/{self.process_id}/task").iterdir():
            seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
            if task.name == str(self.process_id):
                first = seconds
            else:
                others += seconds
        return first, others


@contextmanager
def server(model: str, rate: float, folder: Path, is_profiled: bool) -> Iterator[Server]:
    port, profile = folder / "port.json", folder / "profile.json"
    for path in (port, profile):
        path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "http_overhead_server.py"), "--model", model]
    command += ["--port-to", str(port)] + ["--profile-to", str(profile)] * is_profiled
    process = subprocess.Popen(command, env={**os.environ, RATE: str(rate)})
    try:
        while not port.exists():
            if process.poll() is not None:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        yield Server(process.pid, json.loads(port.read_text()))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


async def request(port: int, body: bytes, count_events: bool) -> int:
    """Send one request and return the number of events in its answer.

    With `count_events`, assert that the stream is complete.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    lines = (
        "POST /v1/chat/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    head = "\r\n".join(lines) + "\r\n\r\n"
    writer.write(head.encode() + body)
    num_events, tail = 0, b""
    while data := await reader.read(1 << 16):
        num_events += (tail[-5:] + data).count(b"data: ")
        tail = (tail + data)[-40:]
    writer.close()
    await writer.wait_closed()
    if count_events:
        assert b"data: [DONE]" in tail, tail
    return num_events


async def load(port: int, num_streams: int, body: dict[str, object]) -> tuple[int, float]:
    data = json.dumps(body).encode()
    started = time.perf_counter()
    counts = await asyncio.gather(
        *(request(port, data, bool(body["stream"])) for _ in range(num_streams))
    )
    return sum(counts), time.perf_counter() - started


def measure(target: Server, name: str, arguments: argparse.Namespace) -> Result:
    num_streams, num_tokens = arguments.streams, arguments.tokens
    body: dict[str, object] = {
        "model": "paced",
        "messages": [{"role": "user", "content": "Tell me something."}],
        "max_tokens": num_tokens,
        **SCENARIOS[name],
    }
    asyncio.run(load(target.port, 4, body | {"max_tokens": 50}))
    before = target.cpu()
    num_events, seconds = asyncio.run(load(target.port, num_streams, body))
    loop, reader = (b - a for a, b in zip(before, target.cpu(), strict=True))
    total = num_streams * num_tokens
    return Result(
        scenario=name,
        offered_a_second=arguments.rate,
        tokens_a_second=round(total / seconds),
        events_a_second=round(num_events / seconds),
        microseconds_a_token=round((loop + reader) / total * 1e6, 1),
        microseconds_an_event=round((loop + reader) / num_events * 1e6, 1) if num_events else None,
        reader_microseconds_a_token=round(reader / total * 1e6, 1),
        parts={},
    )


def main() -> None:
    arguments = parse_arguments()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.scenario or SCENARIOS:
            with server(arguments.model, arguments.rate, Path(folder), False) as target:
                result = measure(target, name, arguments)
            if arguments.profile:
                with server(arguments.model, arguments.rate, Path(folder), True) as target:
                    measure(target, name, arguments)
                samples = json.loads((Path(folder) / "profile.json").read_text())
                total = sum(samples.values())
                result.parts = {
                    k: round(v / total, 3) for k, v in sorted(samples.items(), key=lambda x: -x[1])
                }
            results.append(result)
            print(json.dumps(asdict(result)), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="", help="model whose tokenizer is used")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500, help="tokens per stream")
    parser.add_argument(
        "--rate", type=float, default=20_000, help="tokens a second over all streams"
    )
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
