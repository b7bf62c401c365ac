"""Measure how much of the engine's throughput comes out over HTTP, with a model that only waits.

`stonechat serve` runs with its usual settings. Its engine is the real one, but the steps of its
model only take time, as on a GPU (`waiting_model.py`). A client in another process keeps
`--streams` requests running, each with `--input` tokens in and `--tokens` out: as one ends, it
sends the next. The same load also runs on an engine in this process, as `scripts/gpu/bench.py` does
it. All start at once, so that they end at once, too: each round then begins with a burst.

On 16 cores each process has a core of its own. To come near that on two, `--pin` gives the first to
the server's process, and the other to the engine and the client. Linux only.

    PYTHONPATH=server:models:scripts/bench python scripts/bench/http_share.py --pin
"""

import argparse
import json
import os
import random
import selectors
import socket
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from servers import RunningServer, free_port, started
from waiting_model import STEP, Costs, build_waiting_engine

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.runtime.worker_process import WorkerProcess
from stonechat_server.bench.targets.workload import WORDS

ASYNCIO = "BENCH_ASYNCIO"
DONE = b"data: [DONE]\n\n"
END = b"\r\n0\r\n\r\n"


@dataclass
class Stream:
    """A connection of the client, and the times of the request that it runs."""

    connection: socket.socket
    sent: float = 0.0
    has_first: bool = False
    tail: bytes = b""


@dataclass
class Figures:
    tokens_a_second: float = 0.0
    first_token_milliseconds: list[float] = field(default_factory=list)
    num_events: int = 0


class Client:
    """Runs requests in a closed loop, and only counts what comes back."""

    def __init__(self, port: int, arguments: argparse.Namespace) -> None:
        self._port, self._arguments = port, arguments
        self._random = random.Random(port)
        self._selector = selectors.DefaultSelector()

    def run(self, num_requests: int) -> Figures:
        figures, left = Figures(), num_requests
        started = time.perf_counter()
        running = min(self._arguments.streams, num_requests)
        for _ in range(running):
            stream = Stream(socket.create_connection(("127.0.0.1", self._port)))
            stream.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(stream.connection, selectors.EVENT_READ, stream)
            self._send(stream)
            left -= 1
        while running:
            for key, _ in self._selector.select(30.0):
                if not self._receive(key.data, figures):
                    continue
                if left:
                    left -= 1
                    self._send(key.data)
                else:
                    running -= 1
                    self._selector.unregister(key.data.connection)
                    key.data.connection.close()
        seconds = time.perf_counter() - started
        figures.tokens_a_second = num_requests * self._arguments.tokens / seconds
        return figures

    def _send(self, stream: Stream) -> None:
        words = " ".join(self._random.choices(WORDS, k=self._arguments.input - 20))
        body = {
            "model": "waiting",
            "messages": [{"role": "user", "content": words}],
            "max_completion_tokens": self._arguments.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            **self._arguments.fields,
        }
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        stream.sent, stream.has_first, stream.tail = time.perf_counter(), False, b""
        stream.connection.sendall(head.encode() + data)

    def _receive(self, stream: Stream, figures: Figures) -> bool:
        """Return whether the answer is complete."""
        data = stream.connection.recv(1 << 16)
        if not data:
            raise SystemExit(f"the server closed a stream after {stream.tail!r}")
        figures.num_events += data.count(b"data: ")
        if not stream.has_first and b'"content":"' in data.replace(b'"content":""', b""):
            stream.has_first = True
            waited = time.perf_counter() - stream.sent
            figures.first_token_milliseconds.append(1e3 * waited)
        stream.tail = (stream.tail + data)[-len(DONE + END) :]
        return stream.tail == DONE + END


def cpu_seconds(process_id: int) -> dict[str, float]:
    """CPU seconds of each thread of a process, by the thread's number."""
    tasks = Path(f"/proc/{process_id}/task").iterdir()
    return {t.name: int((t / "schedstat").read_text().split()[0]) / 1e9 for t in tasks}


def child_of(process_id: int) -> int | None:
    children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    return int(children[0]) if children else None


def served(arguments: argparse.Namespace, folder: Path) -> AbstractContextManager[RunningServer]:
    """Run `stonechat serve` with the engine that waits."""
    port = free_port()
    command = [sys.executable, __file__, "serve", arguments.model, "--port", str(port)]
    command += ["--served-model-name", "waiting", "--ledger-journal", str(folder / "journal")]
    command += ["--ledger", f"sqlite:///{folder / 'ledger.db'}", *arguments.serve]
    command += [] if arguments.threads else ["--engine-process"]
    tree = Path(arguments.tree or Path(__file__).parents[2])
    paths = [tree / "server", tree / "models", Path(__file__).parent]
    variables = {"PYTHONPATH": ":".join(map(str, paths)), STEP: json.dumps(asdict(arguments.costs))}
    variables |= {ASYNCIO: "1"} if arguments.asyncio else {}
    return started(command, port, log=folder / "server.log", variables=variables)


def over_http(arguments: argparse.Namespace) -> dict[str, float]:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, served(arguments, Path(name)) as server:
        pid = server.process_id
        engine = child_of(pid)
        if arguments.pin:
            place(pid, set(cores[:1]) if engine else set(cores))
            place(engine or os.getpid(), set(cores[1:]))
            place(os.getpid(), set(cores[1:]))
        client = Client(server.port, arguments)
        client.run(arguments.streams)
        before, engine_before = cpu_seconds(pid), cpu_seconds(engine) if engine else {}
        num_requests = arguments.requests * arguments.streams
        figures = client.run(num_requests)
        after, engine_after = cpu_seconds(pid), cpu_seconds(engine) if engine else {}
    total = num_requests * arguments.tokens
    firsts = sorted(figures.first_token_milliseconds)
    loop = after[str(pid)] - before[str(pid)]
    return {
        "tokens_a_second": figures.tokens_a_second,
        "loop_microseconds_a_token": 1e6 * loop / total,
        "loop_milliseconds_a_request": 1e3 * loop / num_requests,
        "other_threads_microseconds_a_token": 1e6
        * (sum(after.values()) - sum(before.values()) - loop)
        / total,
        "engine_microseconds_a_token": 1e6
        * (sum(engine_after.values()) - sum(engine_before.values()))
        / total,
        "events_a_token": figures.num_events / total,
        "first_token_p50_milliseconds": statistics.median(firsts),
        "first_token_p99_milliseconds": firsts[int(0.99 * len(firsts))],
    }


def place(process_id: int, cores: set[int]) -> None:
    for task in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


def in_process(arguments: argparse.Namespace) -> float:
    """Run the same load on an engine in this process. Return tokens a second."""
    engine, tokenizer = build_waiting_engine(EngineConfig(model=arguments.model), lambda line: None)
    params = SamplingParams(temperature=0.0, max_tokens=arguments.tokens, ignore_eos=True)
    numbers = random.Random(1)
    vocabulary = range(tokenizer.vocab_size)
    total = arguments.requests * arguments.streams
    prompts = [numbers.choices(vocabulary, k=arguments.input) for _ in range(total)]
    num_sent = num_ended = 0
    started = time.perf_counter()
    while num_ended < total:
        while num_sent < min(total, num_ended + arguments.streams):
            engine.add(
                GenerateRequest(
                    request_id=str(num_sent), prompt_token_ids=prompts[num_sent], params=params
                )
            )
            num_sent += 1
        num_ended += sum([output.finish_reason is not None for output in engine.step()])
    return float(total * arguments.tokens / (time.perf_counter() - started))


def serve(words: list[str]) -> int:
    """Be `stonechat serve` with the engine that waits, in this process or in one of its own."""
    from stonechat_models.runtime import build, process_runner

    if os.environ.get(ASYNCIO):
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    from stonechat_server.cli import main as stonechat

    build.build_engine = build_waiting_engine
    worker = partial(WorkerProcess, module="http_share")
    process_runner.WorkerProcess = worker  # type: ignore[attr-defined, assignment]
    return stonechat(["serve", *words])


def run_child(file_descriptor: int) -> int:
    """Be the engine process."""
    from stonechat_models.runtime import build, worker_main

    build.build_engine = build_waiting_engine
    return worker_main.main(file_descriptor)


def main() -> None:
    if sys.argv[1:] and sys.argv[1] == "serve":
        sys.exit(serve(sys.argv[2:]))
    if sys.argv[1:] and sys.argv[1].isdigit():
        sys.exit(run_child(int(sys.argv[1])))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default", help="model whose tokenizer is used")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--input", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--requests", type=int, default=4, help="of each stream")
    costs = "what a step costs, as JSON; see `Costs` in waiting_model.py"
    parser.add_argument(
        "--costs", type=lambda t: Costs(**json.loads(t)), default=Costs(), help=costs
    )
    parser.add_argument(
        "--fields", type=json.loads, default={}, help="further fields of the requests, as JSON"
    )
    parser.add_argument("--threads", action="store_true", help="the engine in the server's process")
    parser.add_argument("--pin", action="store_true", help="a core for the server's process")
    parser.add_argument("--tree", help="another checkout whose server and engine are measured")
    parser.add_argument("--serve", nargs="*", default=[], help="more flags of `stonechat serve`")
    parser.add_argument("--no-base", action="store_true", help="over HTTP only")
    parser.add_argument("--asyncio", action="store_true", help="without uvloop")
    arguments = parser.parse_args()
    base = None if arguments.no_base else in_process(arguments)
    figures = over_http(arguments)
    if base is not None:
        figures["in_process_tokens_a_second"] = base
        figures["share"] = figures["tokens_a_second"] / base
    for name, value in figures.items():
        print(f"{name:40s} {value:10.4g}", flush=True)


if __name__ == "__main__":
    main()
