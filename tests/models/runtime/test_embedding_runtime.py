"""The public engine with an embedding model."""

import asyncio

import numpy as np
import pytest

from stonechat_models import (
    AsyncEngine,
    EmbeddingParams,
    EngineConfig,
    EngineDeadError,
    GenerateRequest,
    InvalidParamsError,
    SamplingParams,
)
from tests.models.tiny_embedders import HIDDEN_SIZE, save_embedder
from tests.models.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    prompts = {"prompts": {"query": "query: "}}
    return save_embedder(tmp_path_factory.mktemp("models") / "tiny", settings=prompts)


def request(name="r", prompt=(2, 9, 3), embedding=True, **params):
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=list(prompt),
        params=SamplingParams(max_tokens=0),
        embedding=EmbeddingParams(**params) if embedding else None,
    )


async def embed(engine, embedding_request):
    outputs = [output async for output in engine.generate(embedding_request)]
    assert [output.finished for output in outputs] == [True]
    assert outputs[0].num_prompt_tokens == len(embedding_request.prompt_token_ids)
    assert [delta.text for delta in outputs[0].deltas] == [""]
    return np.frombuffer(outputs[0].embedding, dtype="<f4")


def run(config, test):
    async def main():
        engine = AsyncEngine.from_config(config)
        await engine.start()
        try:
            return await asyncio.wait_for(test(engine), 120)
        finally:
            await engine.shutdown()

    return asyncio.run(main())


def test_many_requests_at_a_time(folder):
    config = EngineConfig(model=str(folder), device="cpu", threads=1)

    async def test(engine):
        assert engine.model.embedding.size == HIDDEN_SIZE
        assert engine.model.embedding.prompts == {"query": "query: "}
        prompts = [[2, *range(5, 5 + n), 3] for n in (1, 20, 3, 7, 2, 40)]
        alone = [await embed(engine, request("alone", p)) for p in prompts]
        many = [request(str(i), prompts[i % 6]) for i in range(60)]
        together = await asyncio.gather(*(embed(engine, r) for r in many))
        for i, vector in enumerate(together):
            np.testing.assert_allclose(vector, alone[i % 6], atol=2e-6)
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert engine.stats().num_prompt_tokens == 11 * sum(map(len, prompts))

    run(config, test)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"embedding": False}, "model"),
        ({"prompt": [5] * 49}, "input"),
        ({"prompt": []}, "messages"),
        ({"dimensions": HIDDEN_SIZE + 1}, "dimensions"),
    ],
)
def test_requests_that_it_refuses(folder, changes, param):
    async def test(engine):
        with pytest.raises(InvalidParamsError) as caught:
            await embed(engine, request(**changes))
        assert caught.value.param == param
        await embed(engine, request(prompt=[5] * 48))

    run(EngineConfig(model=str(folder), device="cpu", threads=1), test)


def test_requests_after_the_end_fail(folder):
    async def main():
        engine = AsyncEngine.from_config(EngineConfig(model=str(folder), device="cpu", threads=1))
        await engine.start()
        await embed(engine, request())
        await engine.shutdown()
        assert not engine.is_alive
        with pytest.raises(EngineDeadError):
            await embed(engine, request())

    asyncio.run(main())


@pytest.mark.parametrize("backend", ["transformers", "native"])
def test_a_model_that_generates_needs_the_setting(default_model_files, tmp_path, backend):
    folder = tmp_path / "tiny"
    save_tiny_model(
        folder, "llama", default_model_files.folder, vocab_size=49152, num_attention_heads=1,
        num_key_value_heads=1, intermediate_size=64,
    )  # fmt: skip
    settings = {"model": str(folder), "device": "cpu", "backend": backend, "threads": 1}

    async def refused(engine):
        assert engine.model.embedding is None
        with pytest.raises(InvalidParamsError, match="not served for embeddings"):
            await embed(engine, request())

    async def served(engine):
        assert engine.model.generates
        assert engine.model.embedding.size == HIDDEN_SIZE
        return await embed(engine, request(prompt=[400, 500, 600], dimensions=7))

    run(EngineConfig(**settings, kv_cache_bytes=4 << 20), refused)
    vector = run(EngineConfig(**settings, kv_cache_bytes=4 << 20, embeddings=True), served)
    assert vector.shape == (7,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
