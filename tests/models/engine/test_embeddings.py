"""Embeddings by a model that generates: the final hidden state of the prompt's last token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers.cuda.graphs import GraphedModel
from stonechat_models.backends.transformers.head_tap import HeadTap
from stonechat_models.engine.embeddings import finish_score
from stonechat_models.errors import StepError, UnsupportedModelError
from stonechat_models.model_info import EmbeddingInfo, RankingInfo
from stonechat_models.types import EmbeddingParams, FinishReason, GenerateRequest, SamplingParams
from tests.models.engines import CPU, add, greedy, make_engine, reference_greedy
from tests.models.tiny_models import tiny_model

PROMPTS = [[5, 6, 7], [9] * 13, [100, 3, 50, 60, 70, 80], [17]]
FAMILIES = ("llama", "gemma2", "gpt_neox", "qwen3_moe", "qwen3_5_text", "bloom", "stablelm")


def embedding_engine(module, **settings):
    engine = make_engine(module, **settings)
    hidden_size = engine.model.hidden_size
    info = EmbeddingInfo(size=hidden_size, pooling="lasttoken", is_normalized=True)
    engine.model.info = replace(engine.model.info, embedding=info)
    return engine


def embed_request(name, prompt, **params):
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=prompt,
        params=SamplingParams(max_tokens=0),
        embedding=EmbeddingParams(**params),
    )


def run(engine, limit=500):
    """Step until all requests end. Return the last output of each."""
    results = {}
    for _ in range(limit):
        if not engine.has_work:
            return results
        for output in engine.step():
            results[output.request_id] = output
        engine.scheduler.check_integrity()
    raise AssertionError("the engine did not finish its requests")


def vector(output) -> torch.Tensor:
    assert output.error is None
    assert output.finish_reason is FinishReason.STOP
    assert output.token_ids == ()
    return torch.from_numpy(np.frombuffer(output.embedding, dtype="<f4").copy())


@torch.inference_mode()
def reference(module, prompt) -> torch.Tensor:
    module.set_attn_implementation("eager")
    hidden = module.base_model(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state
    return torch.nn.functional.normalize(hidden[0, -1], dim=-1)


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_normalised_hidden_state_of_the_last_token(family, overlap):
    module = tiny_model(family)
    expected = [reference(module, prompt) for prompt in PROMPTS]
    engine = embedding_engine(module, overlap=overlap, max_batch_tokens=64)
    for i, prompt in enumerate(PROMPTS):
        engine.add(embed_request(str(i), prompt))
    results = run(engine)
    for i, wanted in enumerate(expected):
        torch.testing.assert_close(vector(results[str(i)]), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("overlap", [False, True], ids=["in-order", "overlap"])
def test_it_shares_steps_with_requests_that_generate(overlap):
    module = tiny_model("llama")
    tokens, _ = reference_greedy(module, PROMPTS[1], 8)
    expected = reference(module, PROMPTS[2])
    engine = embedding_engine(module, overlap=overlap, max_batch_tokens=6)
    add(engine, "text", PROMPTS[1], greedy(8))
    engine.add(embed_request("vector", PROMPTS[2]))
    generated = []
    results = {}
    while engine.has_work:
        for output in engine.step():
            results[output.request_id] = output
            generated += output.token_ids
    assert generated == tokens
    torch.testing.assert_close(vector(results["vector"]), expected, atol=1e-5, rtol=1e-4)


def test_a_long_text_is_computed_in_pieces_and_cached():
    module = tiny_model("llama")
    prompt = [(7 * i) % 90 + 3 for i in range(40)]
    expected = reference(module, prompt)
    engine = embedding_engine(module, max_batch_tokens=16)
    for name, num_cached in (("first", 0), ("again", 36)):
        engine.add(embed_request(name, prompt))
        output = run(engine)[name]
        assert output.num_cached_tokens == num_cached
        torch.testing.assert_close(vector(output), expected, atol=1e-5, rtol=1e-4)


def test_fewer_dimensions_are_normalised_again():
    module = tiny_model("llama")
    whole = reference(module, PROMPTS[0])
    engine = embedding_engine(module)
    engine.add(embed_request("cut", PROMPTS[0], dimensions=8))
    engine.add(embed_request("raw", PROMPTS[0], normalize=False))
    results = run(engine)
    cut = torch.nn.functional.normalize(whole[:8], dim=-1)
    torch.testing.assert_close(vector(results["cut"]), cut, atol=1e-5, rtol=1e-4)
    raw = vector(results["raw"])
    assert abs(float(raw.norm()) - 1) > 0.01
    torch.testing.assert_close(raw / raw.norm(), whole, atol=1e-5, rtol=1e-4)


def test_it_shares_steps_with_log_probabilities_of_prompts():
    module = tiny_model("llama")
    expected = [reference(module, prompt) for prompt in PROMPTS]
    engine = embedding_engine(module, max_batch_tokens=64)
    for i, prompt in enumerate(PROMPTS):
        add(engine, f"text{i}", prompt, greedy(2, prompt_logprobs=1))
        engine.add(embed_request(str(i), prompt))
    results = run(engine)
    for i, wanted in enumerate(expected):
        torch.testing.assert_close(vector(results[str(i)]), wanted, atol=1e-5, rtol=1e-4)


def test_a_model_with_cuda_graphs_computes_it_without_them():
    module = tiny_model("llama")
    expected = reference(module, [17])
    engine = embedding_engine(module)
    engine.model = GraphedModel(engine.model, CPU)
    assert engine.model.hidden_size == 32
    engine.add(embed_request("r", [17]))
    torch.testing.assert_close(vector(run(engine)["r"]), expected, atol=1e-5, rtol=1e-4)


def test_a_model_that_does_not_name_its_head_makes_none(monkeypatch):
    module = tiny_model("llama")
    monkeypatch.setattr(type(module), "get_output_embeddings", lambda _: None)
    with pytest.raises(UnsupportedModelError, match="leave out --embeddings"):
        _ = make_engine(module).model.hidden_size


def test_a_head_that_is_never_called_is_an_error_of_the_step():
    with HeadTap(tiny_model("llama")) as tap, pytest.raises(StepError, match="output head"):
        tap.call(0)


def test_a_vector_that_is_not_finite_fails_alone():
    module = tiny_model("llama")
    with torch.no_grad():
        module.get_input_embeddings().weight[17] = float("nan")
    engine = embedding_engine(module)
    engine.add(embed_request("bad", [17]))
    engine.add(embed_request("good", PROMPTS[0]))
    results = run(engine)
    assert results["bad"].finish_reason is FinishReason.ERROR
    assert results["bad"].embedding is None
    assert vector(results["good"]).isfinite().all()


def test_scores_equal_those_of_pytorch_also_far_from_zero():
    numbers = np.array([-1e30, -200, -100, -88, -5, 0, 5, 100, 1e30], np.float32)
    info = RankingInfo(activation="Sigmoid")
    scores = [np.frombuffer(finish_score(numbers[[i]], None, info), "<f4") for i in range(9)]
    expected = torch.from_numpy(numbers).double().sigmoid().numpy()
    np.testing.assert_allclose([score for score, _ in scores], expected, rtol=1e-6, atol=1e-44)
    assert [number for _, number in scores] == numbers.tolist()
