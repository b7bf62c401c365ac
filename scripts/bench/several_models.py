"""Measure what several models behind one endpoint cost: a request, and a switch between them.

    .venv/bin/python scripts/bench/several_models.py MODEL OTHER

Starts three servers one after another: MODEL alone, alone with its engine in a process, and with
OTHER behind the same endpoint. Each answers the same requests of one token over one connection. On
the last one, the models are then unloaded and woken in turn; the time of a switch is that of the
first request of 8 tokens to a model that sleeps, from sending it to the whole answer.
"""

import http.client
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from servers import stonechat

NUM_REQUESTS = 300
NUM_SWITCHES = 4


@contextmanager
def server(*words: str) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server with these words on its command line."""
    settings = ["--ledger", "off", "--log-level", "error", "--kv-cache-size", "256MiB"]
    with stonechat("serve", *settings, "--keys-file", "off", *words) as running:
        yield http.client.HTTPConnection("127.0.0.1", running.port)


def post(connection: http.client.HTTPConnection, path: str, body: dict[str, object]) -> float:
    """Send a request, and return the seconds to the end of its answer."""
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status == 200, text
    return time.perf_counter() - start


def ask(connection: http.client.HTTPConnection, model: str | None, num_tokens: int) -> float:
    """The seconds of one chat request."""
    body: dict[str, object] = {
        "messages": [{"role": "user", "content": "Name a river."}],
        "max_completion_tokens": num_tokens,
        "temperature": 0,
    }
    return post(
        connection, "/v1/chat/completions", body if model is None else body | {"model": model}
    )


def show(label: str, times: Sequence[float]) -> None:
    ordered = sorted(times)
    print(
        f"{label:<40} least {ordered[0] * 1000:8.2f} ms   "
        f"median {statistics.median(ordered) * 1000:8.2f} ms   n {len(ordered)}",
        flush=True,
    )


def requests(label: str, *words: str) -> None:
    with server(*words) as connection:
        for _ in range(20):
            ask(connection, None, 1)
        show(label, [ask(connection, None, 1) for _ in range(NUM_REQUESTS)])


def switches(model: str, other: str) -> None:
    with server(model, other) as connection:
        names = [name.rpartition("/")[2].removesuffix(".gguf") for name in (model, other)]
        for name in names:
            show(f"first load of {name}", [ask(connection, name, 8)])
        for _ in range(20):
            ask(connection, names[0], 1)
        times = [ask(connection, names[0], 1) for _ in range(NUM_REQUESTS)]
        show("one of two models", times)
        for name in names:
            times = []
            for _ in range(NUM_SWITCHES):
                post(connection, "/v1/models/unload", {"model": name})
                times.append(ask(connection, name, 8))
            show(f"waking {name}", times)
            show(f"{name} when it is awake", [ask(connection, name, 8) for _ in range(10)])


def main(argv: Sequence[str]) -> None:
    model, other = argv
    requests("alone", model)
    requests("alone, engine in a process", model, "--engine-process")
    switches(model, other)


if __name__ == "__main__":
    main(sys.argv[1:])
