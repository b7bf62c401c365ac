"""Measure what a step costs outside the model: in the engine, and over HTTP.

The engine runs the requests alone first. Then the same process serves the same requests as streams
to a client in a process of its own. For each number of requests the report has, in milliseconds a
step: the model's call; the gap between two calls; what a client waits for a step, less the
model's time in the engine alone; and the CPU time of the event loop. Linux only: CPU time is read
from /proc. Example:

    PYTHONPATH=server:models .venv/bin/python scripts/bench/token_costs.py --temperature 0
"""

import argparse
import gc
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from stonechat_models import AsyncEngine, GenerateRequest, SamplingParams
from stonechat_server.app import create_app
from stonechat_server.commands.serve import listen
from stonechat_server.serving.http_server import serve
from stonechat_server.settings import Settings

PROMPT_TOKENS = 45
EDGE_STEPS = 3
"""Steps at both ends of a run that are not counted."""
CLIENT = """
import json, socket, sys, threading, time
port, model, num_requests, num_tokens, temperature = json.loads(sys.argv[1])

def receive(number, times):
    text = f"Tell me story number {number} about three rivers of Europe and a mill."
    body = json.dumps({"model": model, "stream": True, "max_completion_tokens": num_tokens,
                       "ignore_eos": True, "temperature": temperature, "seed": number,
                       "messages": [{"role": "user", "content": text}]}).encode()
    head = ("POST /v1/chat/completions HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n"
            f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + body)
        end = b""
        while data := connection.recv(65536):
            times.append(time.monotonic())
            end = (end + data)[-64:]
        assert b"[DONE]" in end, end

for line in sys.stdin:
    times = [[] for _ in range(num_requests)]
    threads = [threading.Thread(target=receive, args=pair) for pair in enumerate(times)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    first, last = max(t[1] for t in times), min(t[-3] for t in times)
    print(1e3 * (last - first) / (num_tokens - 2), flush=True)
"""


@dataclass
class Forward:
    """Calls the model, and notes when each call begins and ends."""

    function: Callable[[Any], Any]
    calls: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, batch: Any) -> Any:
        started = time.perf_counter()
        result = self.function(batch)
        self.calls.append((started, time.perf_counter()))
        return result

    def take(self) -> tuple[float, float]:
        """Return the median milliseconds of a call and of a gap since the last `take`."""
        calls, self.calls = self.calls[EDGE_STEPS:-EDGE_STEPS], []
        gaps = [b[0] - a[1] for a, b in pairwise(calls)]
        lengths = [end - start for start, end in calls]
        return 1e3 * statistics.median(lengths), 1e3 * statistics.median(gaps)


class Bench:
    """One server, with its engine in the same process."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        settings = Settings(model=arguments.model, ledger="off", engine_process=False)
        self.engine = AsyncEngine.from_config(settings.engine_config(), lambda line: None)
        self.inner: Any = self.engine._runner.engine  # type: ignore[attr-defined]
        self.forward = self.inner.model.forward = Forward(self.inner.model.forward)
        self.app = create_app(settings, self.engine)
        self.model_milliseconds: dict[int, float] = {}

    def run_alone(self, num_requests: int) -> None:
        """Run the requests in the engine, and print the parts of a step."""
        best = (float("inf"), 0.0)
        for _ in range(self.arguments.repeats):
            for number in range(num_requests):
                self.inner.add(self.request(number))
            self.forward.calls.clear()
            while self.inner.has_work:
                self.inner.step()
            best = min(best, self.forward.take())
        self.model_milliseconds[num_requests] = best[0]
        print(f"{num_requests:3d} in the engine: model {best[0]:.3f}, gap {best[1]:.3f} ms")

    def request(self, number: int) -> GenerateRequest:
        params = SamplingParams(
            temperature=self.arguments.temperature,
            seed=number,
            max_tokens=self.arguments.tokens,
            ignore_eos=True,
        )
        prompt = [1000 + number + 7 * i for i in range(PROMPT_TOKENS)]
        return GenerateRequest(request_id=f"r{number}", prompt_token_ids=prompt, params=params)

    def run_streams(self, port: int) -> None:
        """Run the requests over HTTP, and print the parts of a step."""
        for num_requests in self.arguments.concurrency:
            settings = (self.arguments.tokens, self.arguments.temperature)
            command = json.dumps([port, self.engine.model.name, num_requests, *settings])
            with subprocess.Popen(
                [sys.executable, "-c", CLIENT, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                runs = [self.run_client(client) for _ in range(self.arguments.repeats)]
                assert client.stdin is not None
                client.stdin.close()
            step, loop, model, gap = min(runs)
            outside = step - self.model_milliseconds[num_requests]
            rate = 1e3 * num_requests / step
            print(
                f"{num_requests:3d} over HTTP: {step:.3f} ms a step, {rate:.0f} tokens/s; "
                f"model {model:.3f}, gap {gap:.3f}; outside the model {outside:.3f}; "
                f"event loop {loop:.3f} of CPU",
                flush=True,
            )

    def run_client(self, client: "subprocess.Popen[str]") -> tuple[float, float, float, float]:
        assert client.stdin is not None
        assert client.stdout is not None
        self.forward.calls.clear()
        before = loop_milliseconds()
        client.stdin.write("\n")
        client.stdin.flush()
        step = float(client.stdout.readline())
        loop = (loop_milliseconds() - before) / self.arguments.tokens
        return (step, loop, *self.forward.take())

    def run(self) -> None:
        for num_requests in self.arguments.concurrency:
            self.run_alone(num_requests)
        gc.collect()
        gc.freeze()
        listener = listen("127.0.0.1", 0)

        def drive() -> None:
            try:
                self.run_streams(listener.getsockname()[1])
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        serve(self.app, listener, lambda: threading.Thread(target=drive).start())


def loop_milliseconds() -> float:
    """CPU time of the first thread, which runs the event loop."""
    path = Path(f"/proc/self/task/{os.getpid()}/schedstat")
    return int(path.read_text().split()[0]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest run counts")
    Bench(parser.parse_args()).run()


if __name__ == "__main__":
    main()
