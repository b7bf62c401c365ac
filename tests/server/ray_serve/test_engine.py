"""The engine of an ingress, over replicas without Ray."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from stonechat_models import (
    EngineDeadError,
    FinishReason,
    GenerateRequest,
    GrammarError,
    PromptTooLongError,
    RequestOutput,
    SamplingParams,
)
from stonechat_server.app import create_app
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.ray_serve.engine import ReplicatedEngine, connect
from stonechat_server.ray_serve.ingress import make_app
from stonechat_server.ray_serve.wire import Description
from stonechat_server.settings import Settings
from tests.models.tiny_tokenizers import save_byte_level
from tests.server.fake_engine import FakeEngine, delta, model_info, output, text_script
from tests.server.ray_serve.fake_replicas import new_engine
from tests.virtual_time import VirtualLoop

STEPS = 20
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def request_of(
    request_id: str = "r", num_tokens: int = 40, start: int = 0, **params: Any
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=list(range(start, start + num_tokens)),
        params=SamplingParams(**params),
        arrival_time=1000.0,
    )


def slow(pause: float = 0.01) -> FakeEngine:
    return FakeEngine(text_script(*"x" * STEPS, pause=pause))


def generate(
    engine: ReplicatedEngine, request: GenerateRequest
) -> AsyncGenerator[RequestOutput, None]:
    return cast("AsyncGenerator[RequestOutput, None]", engine.generate(request))


async def texts(engine: ReplicatedEngine, request: GenerateRequest) -> str:
    return "".join([d.text async for o in engine.generate(request) for d in o.deltas])


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses", "messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_those_of_a_server_with_the_engine_itself(path: str, stream: bool) -> None:
    body: dict[str, Any] = {"model": "tiny-test", "stream": stream, "max_tokens": 9}
    message = [{"role": "user", "content": "hi"}]
    match path:
        case "completions":
            body["prompt"] = "hi"
        case "responses":
            body = {"model": "tiny-test", "stream": stream, "input": "hi"}
        case _:
            body["messages"] = message
    answers = []
    for engine in (FakeEngine(), new_engine(FakeEngine(), FakeEngine())[0]):
        app = create_app(Settings(), cast("EngineLike", engine))
        with TestClient(app, "http://127.0.0.1:8000") as client:
            answers.append(client.post(f"/v1/{path}", json=body))
    assert [answer.status_code for answer in answers] == [200, 200]
    left, right = (_without_ids(answer.text) for answer in answers)
    assert left == right


def _without_ids(text: str) -> str:
    import re

    text = re.sub(r'"(chatcmpl|cmpl|resp|msg)[-_][0-9a-zA-Z]+"', '"ID"', text)
    return re.sub(r'"(created|created_at|completed_at)":[0-9.]+', r'"\1":0', text)


async def test_errors_of_the_engine_arrive_before_the_first_output() -> None:
    engine, _ = new_engine(FakeEngine(lambda _: [GrammarError("it is empty")]))
    with pytest.raises(GrammarError, match="it is empty"):
        await texts(engine, request_of())
    with pytest.raises(PromptTooLongError) as caught:
        await texts(engine, request_of(num_tokens=5000))
    assert (caught.value.num_prompt_tokens, caught.value.max_model_len) == (5000, 4096)
    assert engine.stats().num_running == engine.stats().num_waiting == 0


async def test_closing_the_iterator_aborts_the_request_in_its_replica() -> None:
    inner = slow()
    engine, _ = new_engine(inner)
    stream = generate(engine, request_of("left"))
    await anext(stream)
    assert engine.stats().num_running == 1
    await stream.aclose()
    assert engine.stats().num_running == 0
    for _ in range(100):
        if inner.aborted:
            break
        await asyncio.sleep(0.01)
    assert inner.aborted == ["left"]
    assert inner.num_running == 0


async def test_the_death_of_a_replica_ends_its_own_streams_and_no_others() -> None:
    engine, replicas = new_engine(slow(0.05), slow(0.05))
    runs: list[asyncio.Task[str]] = []
    for i in range(6):
        runs.append(asyncio.create_task(texts(engine, request_of(f"r{i}", start=1000 * i))))
        while sum(inner.num_running for inner in replicas.engines.values()) < len(runs):
            await asyncio.sleep(0.001)
    assert set(replicas.chosen) == {"a", "b"}
    replicas.kill("a")
    results = await asyncio.gather(*runs, return_exceptions=True)
    for name, result in zip(replicas.chosen, results, strict=True):
        if name == "a":
            assert isinstance(result, EngineDeadError)
        else:
            assert result == "x" * STEPS
    assert await texts(engine, request_of()) == "x" * STEPS
    assert engine.is_alive


async def test_a_stream_that_ends_without_its_last_output_is_an_error() -> None:
    script = text_script("x", "y")
    engine, _ = new_engine(FakeEngine(lambda request: script(request)[:1]))
    with pytest.raises(EngineDeadError, match="too early"):
        await texts(engine, request_of())


@pytest.mark.parametrize("failure", [None, EngineDeadError("it does not start again")])
async def test_a_replica_whose_engine_starts_again_lets_requests_wait(failure: Any) -> None:
    """Did it refuse them, it would have the fewest, and the router would send it all others."""
    inner = FakeEngine(text_script("x"), is_alive=False, failure=failure)
    engine, _ = new_engine(inner)
    run = asyncio.create_task(texts(engine, request_of()))
    while not engine.stats().num_running and not run.done():
        await asyncio.sleep(0.001)
    for _ in range(10):
        await asyncio.sleep(0)
    assert bool(inner.requests) is (failure is not None)
    inner.is_alive = True
    assert await run == "x"


async def test_a_choice_is_ended_in_the_replica_that_runs_it() -> None:
    engine, replicas = new_engine(slow(), slow())
    stream = generate(engine, request_of("two", n=2))
    await anext(stream)
    engine.end_choice("two", 1)
    engine.end_choice("unknown", 0)
    await stream.aclose()
    chosen = replicas.engines[replicas.chosen[0]]
    assert chosen.ended == [("two", 1)]
    assert sum(len(inner.ended) for inner in replicas.engines.values()) == 1


async def test_times_are_on_the_clock_of_the_ingress() -> None:
    engine, _ = new_engine(FakeEngine())
    engine.clock = lambda: 5.0  # the replica's clock is far ahead
    outputs = [out async for out in engine.generate(request_of())]
    times = outputs[-1].timings
    assert times.arrival == 1000.0
    for moment in (times.scheduled, times.first_token, times.finished):
        assert moment is not None
        assert 5.0 <= moment < 65.0


async def test_statistics_count_what_this_ingress_sent_and_received() -> None:
    inner = FakeEngine(lambda request: [
        output(request, delta("a"), cached=32),
        output(request, delta("b", finish=FinishReason.STOP), cached=32, finished=True),
    ])  # fmt: skip
    engine, _ = new_engine(inner)
    for i in range(2):
        await texts(engine, request_of(str(i), 40))
    stats = engine.stats()
    assert stats.num_cache_queried_tokens == 80
    assert stats.num_cache_hit_tokens == 64
    assert stats.num_prompt_tokens == 16
    assert stats.num_generated_tokens == 4


async def test_a_closing_ingress_takes_no_more_requests() -> None:
    engine, _ = new_engine(FakeEngine())
    await engine.shutdown()
    with pytest.raises(EngineDeadError):
        await texts(engine, request_of())


def test_an_ingress_gets_the_model_its_share_and_its_tokenizer(tmp_path: Any) -> None:
    source = save_byte_level(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in source.iterdir()} | {"../evil.json": b"{}"}
    folder = tmp_path / "own"
    folder.mkdir()
    description = Description(model=model_info(max_num_seqs=32, num_blocks=100), files=files)
    engine = connect(new_engine(FakeEngine())[1], description, folder, capacity=1.5)
    assert (engine.model.max_num_seqs, engine.model.num_blocks) == (48, 150)
    assert engine.tokenizer.decode(engine.tokenizer.encode("wörld")) == "wörld"
    assert not (tmp_path / "evil.json").exists()


@pytest.mark.parametrize(("keys", "warns"), [([], True), (["secret"], False)])
def test_an_ingress_that_is_open_to_the_network_warns(
    keys: list[str], warns: bool, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr("stonechat_server.observability.access_log.configure_logging", print)
    settings = Settings(host="0.0.0.0", api_key=keys, ledger="off", files_dir=Path("off"))
    make_app(settings.model_copy(update={"keys_file": Path("off")}), FakeEngine())
    assert ("without an API key" in caplog.text) is warns
