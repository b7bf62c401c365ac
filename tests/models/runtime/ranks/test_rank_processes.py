"""An engine process with several ranks: it ends with any of them, and comes back."""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import replace

import psutil
import pytest

from stonechat_models import (
    AsyncEngine,
    EngineConfig,
    EngineDeadError,
    GenerateRequest,
    ModelLoadError,
    SamplingParams,
)
from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.tiny_models import save_tiny_model

pytestmark = pytest.mark.nightly

NUM_RANKS = 4
VOCAB_SIZE = 49152
PROMPT = [400, 500, 600, 700, 800]


@pytest.fixture(scope="module")
def config(default_model_files, tmp_path_factory) -> EngineConfig:
    """A tiny random model with a real tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    sizes = {"vocab_size": VOCAB_SIZE, "num_key_value_heads": 4}
    save_tiny_model(folder, "llama", default_model_files.folder, **sizes)
    return EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        kv_cache_bytes=1 << 20,
        tensor_parallel=NUM_RANKS,
    )


@pytest.fixture(scope="module")
def runner():
    """The event loop of the engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(config, runner):
    process = EngineProcess.load(config, lambda _: None, RestartPolicy(9, first_delay=0.0))
    engine = AsyncEngine(process, Tokenizer.from_folder(process.tokenizer_folder))
    runner.run(engine.start())
    yield engine
    processes = all_ranks(engine)
    runner.run(engine.shutdown())
    assert_end(processes)


def all_ranks(engine) -> list[psutil.Process]:
    """The processes of all ranks, in their order."""
    first = psutil.Process(engine._runner.process_id)
    return [first, *filter(is_follower, first.children())]


def assert_end(processes) -> None:
    """Wait until the processes have ended."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive


def request(**params) -> GenerateRequest:
    defaults = {"max_tokens": 8, "seed": 1, "ignore_eos": True, "temperature": 0.0}
    return GenerateRequest(
        request_id="r",
        prompt_token_ids=PROMPT,
        params=SamplingParams(**{**defaults, **params}),
    )


async def token_ids(engine) -> list[int]:
    outputs = [output async for output in engine.generate(request())]
    return [i for output in outputs for delta in output.deltas for i in delta.token_ids]


async def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_the_model_is_split(config, engine, runner):
    assert engine.model.num_ranks == NUM_RANKS
    assert len(all_ranks(engine)) == NUM_RANKS
    one = EngineProcess.load(
        replace(config, tensor_parallel=1, backend="transformers"), lambda _: None
    )
    try:
        assert engine.model.kv_bytes_per_token * NUM_RANKS == one.model.kv_bytes_per_token
        assert engine.model.weight_bytes == one.model.weight_bytes
    finally:
        one.join(0.0)


@pytest.mark.parametrize("is_running", [False, True], ids=["idle", "running"])
@pytest.mark.parametrize("rank", range(NUM_RANKS))
def test_a_killed_rank_ends_all_and_the_engine_comes_back(engine, runner, rank, is_running):
    reason = "the engine process was ended by SIGKILL" if rank == 0 else f"rank {rank} was ended"

    async def test():
        expected = await token_ids(engine)
        processes = all_ranks(engine)
        stream = engine.generate(request(max_tokens=200))
        await anext(stream)
        if not is_running:
            await stream.aclose()
            await wait_until(lambda: engine.stats().num_running == 0)
        processes[rank].kill()
        if is_running:
            with pytest.raises(EngineDeadError, match=reason):
                async for _ in stream:
                    pass
        await wait_until(lambda: not engine.is_alive)
        assert_end(processes)
        await wait_until(lambda: engine.is_alive)
        assert await token_ids(engine) == expected

    runner.run(test())


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_is_killed_while_loading_ends_the_load(config, rank):
    def kill():
        engines = (p for p in psutil.Process().children() if "worker_main" in str(p.cmdline()))
        first = max(engines, key=psutil.Process.create_time)
        end = time.monotonic() + 60
        while len(first.children()) < NUM_RANKS - 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        processes.extend([first, *first.children()])
        os.kill(processes[rank].pid, signal.SIGKILL)

    processes: list[psutil.Process] = []
    reason = f"rank {rank} was ended by SIGKILL" if rank else "the engine process was ended"
    with pytest.raises(ModelLoadError, match=f"{reason}.* while loading the model"):
        EngineProcess.load(config, lambda _: None, meanwhile=kill)
    assert_end(processes)


def test_a_server_that_is_killed_takes_all_ranks_with_it(config):
    process = EngineProcess.load(config, lambda _: None)
    first = psutil.Process(process.process_id)
    processes = [first, *first.children()]
    process._child.pipe.close()  # as the operating system does when a process ends
    assert_end(processes)
    with contextlib.suppress(OSError):
        process.join(0.0)


def test_a_load_that_fails_gives_the_reason_and_leaves_no_process(config):
    before = followers()
    with pytest.raises(ModelLoadError, match="100000"):
        EngineProcess.load(replace(config, max_model_len=100_000), lambda _: None)
    with pytest.raises(ModelLoadError, match="cannot hold a KV cache block"):
        EngineProcess.load(replace(config, kv_cache_bytes=1), lambda _: None)
    assert_end(followers() - before)


def followers() -> set[psutil.Process]:
    """All ranks above 0 on this machine: those of an engine that has ended have other parents."""
    return {p for p in psutil.process_iter() if is_follower(p)}


def is_follower(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "stonechat_models.runtime.ranks.follower" in process.cmdline()
    return False
