"""The server with an engine process on a CUDA device: answers, and recovery from `kill -9`."""

import asyncio
import os
import signal
import time

import httpx
import pytest
import torch

from stonechat_models import AsyncEngine, EngineConfig, EngineDeadError
from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.tiny_models import save_tiny_model
from tests.models.tiny_tokenizers import save_byte_level

pytestmark = pytest.mark.alone

VOCAB_SIZE = 320
NUM_STREAMS = 24
CONTEXT_LENGTH = 1 << 17
"""In tokens. Long, so that a KV cache of gigabytes can be asked for, and a request can last."""
KV_BYTES = 2 << 30
"""More than everything else that the engine's process keeps on the device."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> EngineConfig:
    """A tiny random model with a tiny tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer_folder = save_byte_level(folder / "tokenizer")
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT_LENGTH}
    save_tiny_model(folder / "tiny", "llama", tokenizer_folder, **sizes)
    return EngineConfig(
        model=str(folder / "tiny"),
        device="cuda",
        dtype="float32",
        max_num_seqs=64,
        max_batch_tokens=256,
        kv_cache_bytes=KV_BYTES,
    )


def load(config, **policy):
    process = EngineProcess.load(config, lambda _: None, RestartPolicy(**policy))
    return AsyncEngine(process, Tokenizer.from_folder(process.tokenizer_folder))


def client_of(engine):
    transport = httpx.ASGITransport(create_app(Settings(), engine))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=120)


def body(i, **changes):
    content = " ".join(str(n * i) for n in range(i % 7 + 1))
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "temperature": 0.0,
        "ignore_eos": True,
        **changes,
    }


async def answers(engine):
    """The answers to many simultaneous requests, some of them sampled with a seed."""
    async with client_of(engine) as client:
        sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
        responses = await asyncio.gather(
            *(
                client.post("/v1/chat/completions", json=body(i, **(sampled if i % 3 else {})))
                for i in range(NUM_STREAMS)
            )
        )
    assert {answer.status_code for answer in responses} == {200}
    return [answer.json()["choices"][0]["message"]["content"] for answer in responses]


def free_memory():
    return torch.cuda.mem_get_info(0)[0]


async def wait_until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


async def kill_while_it_runs(engine):
    """Kill the engine's process while it computes long answers, and wait for the new process."""
    async with client_of(engine) as client:
        long = [body(i, max_tokens=CONTEXT_LENGTH // 2) for i in range(8)]
        posts = [client.post("/v1/chat/completions", json=request) for request in long]
        running = [asyncio.create_task(post) for post in posts]
        await wait_until(lambda: engine.stats().num_running == len(running))
        os.kill(engine._runner.process_id, signal.SIGKILL)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        for outcome in outcomes:
            assert isinstance(outcome, EngineDeadError) or outcome.status_code >= 500
        assert (await client.get("/health")).status_code == 503
        await wait_until(lambda: engine.is_alive)
        assert (await client.get("/health")).status_code == 200


def test_a_killed_engine_is_started_again_and_leaves_no_memory(config):
    """Starting a process takes seconds, so this is one test."""

    async def test():
        engine = load(config, max_restarts=1, first_delay=0.0)
        info = engine.model
        assert info.device.startswith("cuda")
        cache_bytes = info.num_blocks * info.block_size * info.kv_bytes_per_token
        assert cache_bytes > 0.9 * KV_BYTES
        await engine.start()
        assert before - free_memory() >= cache_bytes
        expected = await answers(engine)
        await kill_while_it_runs(engine)
        assert engine.model.kv_capacity_tokens == info.kv_capacity_tokens
        assert before - free_memory() >= cache_bytes
        actual = await answers(engine)
        await engine.shutdown()
        assert not engine.is_alive
        return [a == b for a, b in zip(expected, actual, strict=True)]

    before = free_memory()
    same = asyncio.run(test())
    assert sum(same) >= NUM_STREAMS - 1  # sums of other batch sizes round otherwise
    assert before - free_memory() < 64 << 20
