"""The server with an engine process on a CUDA device: answers, and recovery from `kill -9`."""

import asyncio
import os
import signal
import time
from dataclasses import replace

import httpx
import pytest
import torch

from stonechat_models import AsyncEngine, EngineConfig, EngineDeadError
from stonechat_models.runtime.process_runner import EngineProcess, RestartPolicy
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.tiny_models import save_tiny_model

VOCAB_SIZE = 49152
NUM_STREAMS = 24


@pytest.fixture(scope="module")
def config(default_model_files, tmp_path_factory) -> EngineConfig:
    """A tiny random model with a real tokenizer, on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny_model(folder, "llama", default_model_files.folder, vocab_size=VOCAB_SIZE)
    return EngineConfig(
        model=str(folder), device="cuda", dtype="float32", max_num_seqs=32, max_batch_tokens=256
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


def test_answers_are_the_same_with_and_without_graphs(config):
    async def both():
        texts = []
        for eager in (False, True):
            engine = load(replace(config, eager=eager))
            assert engine.model.device.startswith("cuda")
            await engine.start()
            try:
                texts.append(await answers(engine))
            finally:
                await engine.shutdown()
        return texts

    graphed, eager = asyncio.run(both())
    assert graphed == eager


def test_a_killed_engine_is_started_again_with_all_of_its_memory(config):
    async def wait_until(condition, seconds=120.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    async def test():
        engine = load(config, max_restarts=1, first_delay=0.0)
        capacity = engine.model.kv_capacity_tokens
        await engine.start()
        async with client_of(engine) as client:
            running = [
                asyncio.create_task(
                    client.post("/v1/chat/completions", json=body(i, max_tokens=100))
                )
                for i in range(8)
            ]
            await wait_until(lambda: engine.stats().num_running == 8)
            os.kill(engine._runner.process_id, signal.SIGKILL)
            outcomes = await asyncio.gather(*running, return_exceptions=True)
            assert all(
                isinstance(answer, EngineDeadError) or answer.status_code >= 500
                for answer in outcomes
            )
            assert (await client.get("/health")).status_code == 503
            await wait_until(lambda: engine.is_alive)
            assert (await client.get("/health")).status_code == 200
            answer = await client.post("/v1/chat/completions", json=body(1))
            assert answer.json()["usage"]["completion_tokens"] == 16
        assert engine.model.kv_capacity_tokens == capacity
        await engine.shutdown()
        assert not engine.is_alive

    asyncio.run(test())


def test_the_memory_is_free_after_the_end(config):
    def free():
        return torch.cuda.mem_get_info(0)[0]

    async def run():
        engine = load(replace(config, kv_cache_bytes=1 << 30))
        await engine.start()
        during = free()
        await engine.shutdown()
        return during

    before = free()
    during = asyncio.run(run())
    assert before - during >= 1 << 30
    assert before - free() < 64 << 20
