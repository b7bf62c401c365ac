"""All kinds of clients for `soak.py`: patient, slow, leaving, flooding, sending bad bodies."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

PATH = "/v1/chat/completions"
EXPECTED_STATUSES = {200, 429, 504}
SENTENCE = "stone river cold bright seven window music tell me about the old house near that hill"


@dataclass
class Seen:
    """What a client knows of a request whose answer it received whole."""

    status: int
    key: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: str = ""


@dataclass
class Log:
    """The answers, the number of outcomes of each kind, and the problems."""

    seen: dict[str, Seen] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


@dataclass
class Target:
    """The server to send to, and the keys to use. `rng` makes a run repeatable."""

    port: int
    model: str
    keys: dict[str, str]
    rng: random.Random
    log: Log
    max_tokens: int
    number: int = 0
    is_ending: bool = False
    is_killed: bool = False

    def request_id(self) -> str:
        self.number += 1
        return f"soak-{self.number}"

    def body(self, **fields: Any) -> dict[str, Any]:
        words = self.rng.choices(SENTENCE.split(), k=self.rng.randint(1, 40))
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": self.rng.randint(1, self.max_tokens),
            "ignore_eos": self.rng.random() < 0.5,
            "user": f"user-{self.rng.randint(0, 4)}",
            "temperature": self.rng.choice([0, 0.7, 1.5]),
        }
        if self.rng.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": self.rng.randint(0, 5)}
        if self.rng.random() < 0.2:
            body |= {"n": self.rng.randint(2, 4)}
        if self.rng.random() < 0.2:
            body |= {"stop": ["the", "\n"], "presence_penalty": 0.5, "seed": 7}
        return body | fields


class Connection:
    """One HTTP/1.1 exchange over its own socket. Clients may break it off at any point."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))

    def send(self, data: bytes, headers: dict[str, str], length: int | None = None) -> None:
        lines = [f"POST {PATH} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
        lines.append(f"Content-Length: {len(data) if length is None else length}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *rest = raw.decode().split("\r\n")
        pairs = (line.partition(": ") for line in rest if line)
        return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def rest(self, pause: Callable[[], Awaitable[None]] | None = None) -> bytes:
        pieces = []
        while piece := await self.reader.read(4096):
            pieces.append(piece)
            if pause is not None:
                await pause()
        return b"".join(pieces)

    async def close(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


def headers_of(target: Target, key: str, request_id: str, **further: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {target.keys[key]}",
        "Content-Type": "application/json",
        "X-Request-Id": request_id,
        **further,
    }


def dechunk(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(data[:length])
        data = data[length + 2 :]
    return b"".join(pieces)


def answer_of(status: int, headers: dict[str, str], raw: bytes, key: str) -> Seen:
    """Parse an answer as a client does.

    Raises `ValueError`, `KeyError` or `IndexError` if it is incomplete or malformed.
    """
    data = dechunk(raw) if headers.get("transfer-encoding") == "chunked" else raw
    if not headers["content-type"].startswith("text/event-stream"):
        document = json.loads(data)
        if status != 200:
            if set(document["error"]) != {"message", "type", "param", "code"}:
                raise ValueError(f"not an error object: {document}")
            return Seen(status, key)
        return seen_of(document["usage"], {c["index"]: c for c in document["choices"]}, key)
    events = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    events = [event for event in events if not event.startswith(":")]
    if events[-1] != "[DONE]":
        error = json.loads(events[-1])["error"]
        return Seen(504 if error["code"] == "timeout" else 503, key)
    chunks = [json.loads(event) for event in events[:-1]]
    last_choices = {
        choice["index"]: choice
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["finish_reason"]
    }
    return seen_of(chunks[-1]["usage"], last_choices, key)


def seen_of(usage: dict[str, Any], choices: dict[int, Any], key: str) -> Seen:
    reasons = ",".join(choices[index]["finish_reason"] for index in sorted(choices))
    return Seen(200, key, usage["prompt_tokens"], usage["completion_tokens"], reasons)


# --- the clients ---


async def complete(target: Target, key: str = "patient", **further: str) -> None:
    """A client that reads its whole answer."""
    stream = target.rng.random() < 0.6
    options = {"stream_options": {"include_usage": True}} if stream else {}
    await exchange(target, key, target.body(stream=stream, **options), further)


async def slow_reader(target: Target) -> None:
    """A client that reads its stream with pauses, to the end."""

    async def pause() -> None:
        await asyncio.sleep(target.rng.uniform(0, 0.1))

    body = target.body(stream=True, stream_options={"include_usage": True})
    await exchange(target, "patient", body, {}, pause)


async def impatient(target: Target) -> None:
    """A client with a deadline that may be too short."""
    seconds = f"{target.rng.uniform(0.01, 1.0):.3f}"
    await complete(target, "eager", **{"X-Request-Timeout": seconds})


async def exchange(
    target: Target,
    key: str,
    body: dict[str, Any],
    further: dict[str, str],
    pause: Callable[[], Awaitable[None]] | None = None,
) -> None:
    request_id = target.request_id()
    connection = await Connection.open(target.port)
    try:
        connection.send(json.dumps(body).encode(), headers_of(target, key, request_id, **further))
        status, headers = await connection.head()
        answer = answer_of(status, headers, await connection.rest(pause), key)
        target.log.seen[request_id] = answer
        target.log.statuses[f"complete {answer.status}"] += 1
        is_drained = answer.status == 503 and target.is_ending
        if answer.status not in EXPECTED_STATUSES and not is_drained:
            target.log.problem(f"{request_id}: unexpected status {answer.status}")
        if answer.status == 429 and int(headers.get("retry-after", 0)) < 1:
            target.log.problem(f"{request_id}: 429 without Retry-After")
    except (ValueError, KeyError, IndexError) as error:
        if target.is_killed:
            target.log.statuses["cut by the end of the server"] += 1
        else:
            target.log.problem(f"{request_id}: unreadable answer: {error!r}")
    finally:
        await connection.close()


async def leaver(target: Target) -> None:
    """A client that disconnects: within its request, before the answer, or within the answer."""
    connection = await Connection.open(target.port)
    data = json.dumps(target.body(stream=target.rng.random() < 0.7)).encode()
    headers = headers_of(target, "eager", target.request_id())
    when = target.rng.choice(["body", "at once", "soon", "stream", "stream"])
    try:
        if when == "body":
            connection.send(data[: len(data) // 2], headers, length=len(data))
            await asyncio.sleep(target.rng.uniform(0, 0.05))
            return
        connection.send(data, headers)
        if when == "soon":
            await asyncio.sleep(target.rng.uniform(0, 0.5))
        elif when == "stream":
            await connection.head()
            for _ in range(target.rng.randint(0, 5)):
                await connection.reader.read(300)
    finally:
        target.log.statuses[f"left: {when}"] += 1
        if target.rng.random() < 0.5:
            connection.writer.transport.abort()
        await connection.close()


async def bad_body(target: Target) -> None:
    """A client that sends an invalid request, or one that cannot be served."""
    good = target.body()
    depth = target.rng.choice([100, 100_000])
    data = target.rng.choice(
        [
            target.rng.randbytes(target.rng.randint(0, 2000)),
            json.dumps(good).encode()[: target.rng.randint(0, 60)],
            b'{"model": "m", "messages": ' + b"[" * depth + b"]" * depth + b"}",
            json.dumps(good | {"temperature": "hot"}).encode(),
            json.dumps(good | {"n": 10**30}).encode(),
            json.dumps(good | {"model": "another"}).encode(),
            json.dumps(good | {"messages": []}).encode(),
            json.dumps(
                good | {"messages": [{"role": "user", "content": "word " * 20_000}]}
            ).encode(),
            json.dumps(good | {"stop": ["x"] * 1000}).encode(),
            json.dumps(good | {"logit_bias": {"-1": 5}}).encode(),
            b"x" * (2**20),
        ]
    )
    connection = await Connection.open(target.port)
    try:
        connection.send(data, headers_of(target, "eager", target.request_id()))
        status, headers = await connection.head()
        target.log.statuses[f"bad body {status}"] += 1
        if not 400 <= status < 500:
            target.log.problem(f"a bad body got status {status}: {data[:60]!r}")
        answer_of(status, headers, await connection.rest(), "eager")
    except (ValueError, KeyError) as error:
        target.log.problem(f"a bad body's answer is unreadable: {error!r}")
    finally:
        await connection.close()


async def flood(target: Target) -> None:
    """Send many requests with one key at once."""
    await asyncio.gather(*(complete(target, "flood") for _ in range(12)))


CLIENTS = [
    (complete, 10),
    (slow_reader, 2),
    (impatient, 2),
    (leaver, 4),
    (bad_body, 3),
    (flood, 0.3),
]


async def abuse(target: Target, num_requests: int, concurrency: int, num_answers: int = 0) -> None:
    """Keep `concurrency` clients busy until so many requests were sent, and answered whole."""
    kinds = [client for client, _ in CLIENTS]
    weights = [weight for _, weight in CLIENTS]
    statuses = target.log.statuses

    async def worker() -> None:
        while target.number < num_requests or statuses["complete 200"] < num_answers:
            (client,) = target.rng.choices(kinds, weights)
            try:
                async with asyncio.timeout(300):
                    await client(target)
            except TimeoutError:  # caught first, since it is an OSError too
                target.log.problem(f"{client.__name__} hung for 300 s")
            except (OSError, asyncio.IncompleteReadError) as error:
                target.log.problem(f"{client.__name__}: {error!r}")

    await asyncio.gather(*(worker() for _ in range(concurrency)))
