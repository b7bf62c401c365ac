"""The engine in a process of its own: the answers of a thread, and a restart after a crash."""

import asyncio
import os
import re
import signal
import time
from dataclasses import replace

import httpx
import pytest

from stonechat_models import (
    AsyncEngine,
    EngineConfig,
    EngineDeadError,
    GenerateRequest,
    GrammarError,
    GrammarSpec,
    ModelLoadError,
    SamplingParams,
    StopRules,
    UnsupportedModelError,
)
from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
from stonechat_models.runtime.worker_process import WorkerProcess
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.tiny_models import save_tiny_model

VOCAB_SIZE = 49152
PROMPT = [400, 500, 600, 700, 800]


@pytest.fixture(scope="module")
def config(default_model_files, tmp_path_factory) -> EngineConfig:
    """A tiny random model with a real tokenizer, on disk, whose process imports no PyTorch."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(
        folder, "llama", default_model_files.folder, vocab_size=VOCAB_SIZE, num_attention_heads=1,
        num_key_value_heads=1, intermediate_size=64,
    )  # fmt: skip
    return EngineConfig(
        model=str(folder),
        device="cpu",
        backend="native",
        threads=1,
        kv_cache_bytes=4 << 20,
        engine_process=True,
    )


def test_what_is_done_while_the_process_loads_runs_first_and_may_fail(config, monkeypatch):
    calls, ended = [], []

    class Child(WorkerProcess):
        def __init__(self, config):
            calls.append("start")

        def load(self, progress, is_wanted):
            calls.append("load")
            raise ModelLoadError("enough")

        def end(self, patience):
            ended.append(patience)
            return ""

    monkeypatch.setattr("stonechat_models.runtime.process_runner.WorkerProcess", Child)
    with pytest.raises(ModelLoadError, match="enough"):
        AsyncEngine.from_config(config, meanwhile=lambda: calls.append("meanwhile"))
    assert (calls, ended) == (["start", "meanwhile", "load"], [])
    with pytest.raises(ZeroDivisionError):
        AsyncEngine.from_config(config, meanwhile=lambda: 1 // 0)
    assert calls[3:] == ["start"]
    assert ended == [0.0]


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(config, runner):
    """An engine that restarts once, without delay."""
    process = EngineProcess.load(config, lambda _: None, RestartPolicy(1, first_delay=0.0))
    engine = AsyncEngine(process, Tokenizer.from_folder(process.tokenizer_folder))
    runner.run(engine.start())
    yield engine
    runner.run(engine.shutdown())
    assert not engine.is_alive


def request(request_id="r", prompt=PROMPT, **params) -> GenerateRequest:
    defaults = {"max_tokens": 8, "seed": 1, "ignore_eos": True}
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**{**defaults, **params}),
    )


async def collect(engine, generate_request):
    return [delta async for output in engine.generate(generate_request) for delta in output.deltas]


def by_choice(deltas):
    """Return (text, token ids) by choice."""
    choices = {}
    for delta in deltas:
        text, ids = choices.get(delta.index, ("", ()))
        choices[delta.index] = (text + delta.text, ids + delta.token_ids)
    return choices


def logprobs(deltas):
    entries = [entry for delta in deltas for entry in delta.logprobs or ()]
    return [
        value for entry in entries for value in (entry.logprob, *(t.logprob for t in entry.top))
    ]


async def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_it_answers_like_a_thread(config, engine, runner):
    requests = [
        request("greedy", temperature=0.0, top_logprobs=3),
        request("choices", n=3, logit_bias={17: 5.0, 18: -100.0}),
        request("cut", top_p=0.9, top_k=40, frequency_penalty=0.5, seed=-(2**63)),
        request("long", list(range(100, 200)), max_tokens=30, stop=StopRules(strings=("zzzz",))),
    ]

    async def collect_all(engine):
        return await asyncio.gather(*(collect(engine, r) for r in requests))

    async def in_a_thread():
        threaded = AsyncEngine.from_config(replace(config, engine_process=False))
        assert threaded.model.weights_hash == engine.model.weights_hash
        await threaded.start()
        try:
            return await collect_all(threaded)
        finally:
            await threaded.shutdown()

    for ours, theirs in zip(
        runner.run(collect_all(engine)), runner.run(in_a_thread()), strict=True
    ):
        assert by_choice(ours) == by_choice(theirs)
        assert logprobs(ours) == pytest.approx(logprobs(theirs), abs=1e-4)


def test_log_probabilities_of_a_prompt_arrive(engine, runner):
    async def test():
        scored = request(max_tokens=0, prompt_logprobs=2)
        return [output async for output in engine.generate(scored)]

    (output,) = runner.run(test())
    assert output.finished
    first, *entries = output.prompt_logprobs
    assert first is None
    assert [entry.token_id for entry in entries] == PROMPT[1:]
    assert all(len(entry.top) == 2 and entry.rank >= 1 for entry in entries)
    assert all(entry.logprob <= entry.top[0].logprob for entry in entries)


def test_stats_arrive_and_a_closed_iterator_frees_its_blocks(engine, runner):
    async def test():
        stream = engine.generate(request(n=4, max_tokens=200))
        await anext(stream)
        await wait_until(lambda: engine.stats().num_running == 4)
        assert engine.stats().num_used_blocks > 0
        await stream.aclose()
        await wait_until(lambda: engine.stats().num_running == 0)
        assert engine.stats().num_used_blocks == 0

    runner.run(test())


def test_grammars_are_compiled_in_the_process(engine, runner):
    regex = GrammarSpec("regex", "[0-9]{3}(a|b)")

    async def test():
        deltas = await collect(engine, request(grammar=regex, n=2, ignore_eos=False, max_tokens=20))
        for index in (0, 1):
            text = "".join(d.text for d in deltas if d.index == index)
            assert re.fullmatch(regex.source, text)
        with pytest.raises(GrammarError, match="regex"):
            await collect(engine, request(grammar=GrammarSpec("regex", "(")))
        stream = engine.generate(request("gone", grammar=GrammarSpec("regex", "[a-z]{500}")))
        reader = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        reader.cancel()  # most likely while its grammar is compiled
        with pytest.raises(asyncio.CancelledError):
            await reader
        await collect(engine, request("after"))
        await wait_until(lambda: engine.stats().num_used_blocks == 0)

    runner.run(test())


def test_signals_for_the_server_do_not_end_it(engine, runner):
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(engine._runner.process_id, number)
    assert sum(d.num_tokens for d in runner.run(collect(engine, request()))) == 8
    assert engine.is_alive


def test_a_killed_process_fails_its_streams_and_is_started_again(engine, runner):
    transport = httpx.ASGITransport(create_app(Settings(), engine))

    async def health():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return (await client.get("/health")).status_code

    async def kill():
        stream = engine.generate(request(max_tokens=200))
        await anext(stream)
        os.kill(engine._runner.process_id, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            async for _ in stream:
                pass
        assert not engine.is_alive
        assert await health() == 503
        with pytest.raises(EngineDeadError):
            await collect(engine, request("while dead"))

    async def test():
        before = engine._runner.process_id
        await kill()
        assert engine.failure is None
        await wait_until(lambda: engine.is_alive)
        assert await health() == 200
        assert engine._runner.process_id != before
        assert engine.stats().num_generated_tokens == 0
        assert sum(d.num_tokens for d in await collect(engine, request())) == 8
        await kill()  # only one restart is allowed, and the count is not reset yet
        await wait_until(lambda: engine.failure is not None)
        assert not engine.is_alive

    runner.run(test())


def test_a_failed_load_gives_the_reason(config):
    with pytest.raises(UnsupportedModelError, match="100000"):
        EngineProcess.load(replace(config, max_model_len=100_000), lambda _: None)
    with pytest.raises(ModelLoadError, match="neither a folder"):
        EngineProcess.load(replace(config, model=f"{config.model}/config.json"), lambda _: None)


def test_it_ends_with_the_server_even_while_loading(config):
    child = WorkerProcess(config)
    time.sleep(0.5)
    child.pipe.close()  # as the operating system does when a process ends
    assert child._process.wait(60) == 0
