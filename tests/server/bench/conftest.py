"""A scripted server that speaks real HTTP and SSE. The model's name decides how it behaves."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

TEMPLATE_TOKENS = 7
MODELS = (
    "good", "no-done", "no-usage", "refuses", "ends-early", "error-event", "fails", "cut", "greedy",
    "silent",
)  # fmt: skip


@dataclass
class FakeServer:
    url: str
    bodies: list[dict[str, object]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    token_seconds: float = 0.001


def _chunk(model: str, choices: list[object], usage: object = None) -> str:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model}
    return f"data: {json.dumps({**chunk, 'choices': choices, 'usage': usage})}\n\n"


def _delta(delta: dict[str, object], finish: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]


def count_words(messages: list[dict[str, Any]]) -> int:
    texts = [
        message["content"]
        if isinstance(message["content"], str)
        else message["content"][-1]["text"]
        for message in messages
    ]
    return TEMPLATE_TOKENS + sum(len(text.split()) for text in texts)


async def _stream(fake: FakeServer, body: dict[str, object]) -> AsyncIterator[str]:
    model, num_tokens = str(body["model"]), int(str(body["max_tokens"]))
    num_sent = min(num_tokens, 3) if model == "ends-early" else num_tokens
    fake.in_flight += 1
    fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
    try:
        yield _chunk(model, _delta({"role": "assistant", "content": ""}))
        for number in range(num_sent):
            await asyncio.sleep(fake.token_seconds)
            text = "" if model == "silent" else f" word{number}"
            yield _chunk(model, _delta({"content": text}))
            if number == 1 and model == "error-event":
                yield 'data: {"error": {"message": "the step failed", "type": "server_error"}}\n\n'
                return
            if number == 1 and model == "cut":
                raise ConnectionError("cut on purpose")
        yield _chunk(model, _delta({}, "stop" if num_sent < num_tokens else "length"))
        if model != "no-usage":
            prompt_tokens = count_words(body["messages"])  # type: ignore[arg-type]
            num_reported = num_sent - 1 if model == "greedy" else num_sent
            details = {"cached_tokens": prompt_tokens // 2}
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": num_reported}
            yield _chunk(model, [], {**usage, "prompt_tokens_details": details})
        if model != "no-done":
            yield "data: [DONE]\n\n"
    finally:
        fake.in_flight -= 1


def _app(fake: FakeServer) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        facts = {"weight_bytes": 50_000_000, "device": "cpu", "dtype": "bfloat16"}
        cards: list[object] = [{"id": name, "stonechat": facts} for name in MODELS]
        return {"object": "list", "data": [*cards, {"id": "no-facts", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        fake.bodies.append(body)
        if body["model"] == "fails":
            return JSONResponse({"error": {"message": "no luck", "param": None}}, 500)
        if body["model"] == "refuses" and "ignore_eos" in body:
            error = {"message": "Unknown field: ignore_eos", "param": "ignore_eos"}
            return JSONResponse({"error": error}, 400)
        return StreamingResponse(_stream(fake, body), media_type="text/event-stream")

    return app


@pytest.fixture(scope="session")
def _shared_fake() -> Iterator[FakeServer]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    fake = FakeServer(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    config = uvicorn.Config(_app(fake), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    yield fake
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def fake(_shared_fake: FakeServer) -> FakeServer:
    _shared_fake.bodies.clear()
    _shared_fake.most_in_flight = 0
    return _shared_fake


@pytest.fixture(autouse=True)
def _short_look_at_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch the load of the machine for a moment, not for half a second before each run."""
    monkeypatch.setattr("stonechat_server.bench.runner.LOAD_SECONDS", 0.02)
