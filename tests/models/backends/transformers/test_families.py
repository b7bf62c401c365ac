"""Every family returns what plain `transformers` returns, however its requests are scheduled."""

import pytest
import torch

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from tests.models.engines import add, generate_all, greedy, make_engine, reference_greedy, run
from tests.models.tiny_models import (
    CHUNKED_FAMILIES,
    FAMILIES,
    PLAIN_FAMILIES,
    RECURRENT_FAMILIES,
    VOCAB_SIZE,
    WHOLE_PROMPT_FAMILIES,
    tiny_model,
)
from tests.nightly import nightly

NUM_TOKENS = 12
PROMPT_LENS = [1, 3, 9, 17, 30, 5]
USUAL = ("qwen3_5_text", "lfm2", "falcon_h1", "mamba", "bloom", "openai-gpt")
RARE = [
    name
    for name in (*RECURRENT_FAMILIES, *WHOLE_PROMPT_FAMILIES, *PLAIN_FAMILIES)
    if name not in USUAL
]


@pytest.fixture(scope="module", params=[*FAMILIES, *CHUNKED_FAMILIES, *USUAL, *nightly(*RARE)])
def case(request):
    module = tiny_model(request.param)
    generator = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS
    ]
    prompts.append([*prompts[4][:21], 7, 8])  # starts like another
    return module, prompts, [reference_greedy(module, prompt, NUM_TOKENS) for prompt in prompts]


def check(module, results, references):
    """Compare tokens and log-probabilities.

    Recurrent layers compute a prompt in another order than single tokens, and round otherwise.
    """
    family = module.config.model_type
    abs = {"nemotron_h": 5e-3}.get(family, 1e-3 if family in RECURRENT_FAMILIES else 1e-4)
    for result, (token_ids, logprobs) in zip(results, references, strict=True):
        assert result.token_ids == token_ids
        for row, entry in zip(logprobs, result.logprobs, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=abs)
            expected_top = row.topk(5)
            assert entry.top_logprobs == pytest.approx(expected_top.values.tolist(), abs=abs)


def test_references_are_varied(case):
    _, _, references = case
    assert len({tuple(token_ids) for token_ids, _ in references}) > 1


@pytest.mark.parametrize("backend", [SdpaBackend(), BatchedBackend()], ids=lambda b: b.name)
def test_mixed_batch(case, backend):
    module, prompts, references = case
    check(
        module, generate_all(make_engine(module, backend), prompts, greedy(NUM_TOKENS)), references
    )


@pytest.mark.parametrize("backend", [SdpaBackend(), BatchedBackend()], ids=lambda b: b.name)
def test_chunked_prefill(case, backend):
    module, prompts, references = case
    engine = make_engine(module, backend, max_batch_tokens=5, prefix_caching=False)
    check(module, generate_all(engine, prompts, greedy(NUM_TOKENS)), references)


def test_cache_hits(case):
    module, prompts, references = case
    engine = make_engine(module)
    generate_all(engine, prompts, greedy(NUM_TOKENS))
    results = generate_all(engine, prompts, greedy(NUM_TOKENS))
    shares = module.config.model_type not in {**WHOLE_PROMPT_FAMILIES, **PLAIN_FAMILIES}
    expected = [(len(p) - 1) // 4 * 4 if shares else 0 for p in prompts]
    assert [r.num_cached_tokens for r in results] == expected
    check(module, results, references)


def test_preemption(case):
    module, prompts, references = case
    engine = make_engine(module, num_blocks=14, max_model_len=48)
    check(module, generate_all(engine, prompts, greedy(NUM_TOKENS)), references)
    assert engine.stats().num_preemptions > 0


def test_choices_share_the_prompt(case):
    module, prompts, references = case
    engine = make_engine(module)

    add(engine, "r", prompts[4], greedy(NUM_TOKENS, n=3))
    results = run(engine)
    check(module, [results["r", i] for i in range(3)], [references[4]] * 3)
    assert engine.stats().num_used_blocks == 0


def test_choices_of_a_prompt_of_one_token(case):
    module, _, _ = case
    engine = make_engine(module)
    add(engine, "r", [5], greedy(3, n=2))
    results = run(engine)
    assert results["r", 0].token_ids == results["r", 1].token_ids
    assert results["r", 0].error is None
