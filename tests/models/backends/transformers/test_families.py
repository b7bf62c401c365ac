"""Every family returns what plain `transformers` returns, however its requests are scheduled."""

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from stonechat_models.backends.transformers.attention.batched import BatchedBackend
from stonechat_models.backends.transformers.attention.sdpa import SdpaBackend
from tests.models.engines import (
    Generated,
    add,
    generate_all,
    greedy,
    make_engine,
    reference_of,
    run,
)
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

NUM_TOKENS = 9
PROMPT_LENS = [1, 3, 9, 17, 30, 5]
KINDS = (
    *("llama", "gemma3", "gpt_oss", "llama4_text"),
    *("qwen3_5_text", "lfm2", "falcon_h1", "mamba", "bloom", "openai-gpt"),
)
"""One family of each kind of cache and attention."""
USUAL = tuple(dict.fromkeys((*FAMILIES, *CHUNKED_FAMILIES, *KINDS)))
RARE = [
    name
    for name in (*RECURRENT_FAMILIES, *WHOLE_PROMPT_FAMILIES, *PLAIN_FAMILIES)
    if name not in USUAL
]
every_family = pytest.mark.parametrize("family", [*USUAL, *nightly(*RARE)])
each_kind = pytest.mark.parametrize(
    "family", [*KINDS, *nightly(*(name for name in (*USUAL, *RARE) if name not in KINDS))]
)


class Case(NamedTuple):
    """A model, the results of one mixed batch, and what plain `transformers` says of them."""

    module: Any
    prompts: list[list[int]]
    results: list[Generated]
    references: list[tuple[list[int], torch.Tensor]]


@pytest.fixture(scope="module")
def case_of():
    @cache
    def make(family: str) -> Case:
        module = tiny_model(family)
        generator = torch.Generator().manual_seed(1)
        prompts = [
            torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS
        ]
        prompts.append([*prompts[4][:21], 7, 8])  # starts like another
        results = generate_all(make_engine(module, SdpaBackend()), prompts, greedy(NUM_TOKENS))
        references = [
            reference_of(module, prompt, result.token_ids)
            for prompt, result in zip(prompts, results, strict=True)
        ]
        return Case(module, prompts, results, references)

    return make


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


@every_family
def test_mixed_batch(case_of, family):
    case = case_of(family)
    check(case.module, case.results, case.references)
    assert len({tuple(result.token_ids) for result in case.results}) > 1


@pytest.mark.parametrize(
    "backend", [BatchedBackend(), *nightly(SdpaBackend())], ids=lambda b: b.name
)
@each_kind
def test_chunked_prefill(case_of, family, backend):
    module, prompts, _, references = case_of(family)
    engine = make_engine(module, backend, max_batch_tokens=8, prefix_caching=False)
    check(module, generate_all(engine, prompts, greedy(NUM_TOKENS)), references)


@each_kind
def test_cache_hits(case_of, family):
    module, prompts, _, references = case_of(family)
    engine = make_engine(module)
    check(module, generate_all(engine, prompts, greedy(NUM_TOKENS)), references)
    results = generate_all(engine, prompts, greedy(NUM_TOKENS))
    shares = module.config.model_type not in {**WHOLE_PROMPT_FAMILIES, **PLAIN_FAMILIES}
    expected = [(len(p) - 1) // 4 * 4 if shares else 0 for p in prompts]
    assert [r.num_cached_tokens for r in results] == expected
    check(module, results, references)


@each_kind
def test_preemption(case_of, family):
    module, prompts, _, references = case_of(family)
    engine = make_engine(module, num_blocks=14, max_model_len=48)
    check(module, generate_all(engine, prompts, greedy(NUM_TOKENS)), references)
    assert engine.stats().num_preemptions > 0


@each_kind
def test_choices_share_the_prompt(case_of, family):
    module, prompts, _, references = case_of(family)
    engine = make_engine(module)
    add(engine, "r", prompts[4], greedy(NUM_TOKENS, n=3))
    add(engine, "short", [5], greedy(3, n=2))
    results = run(engine)
    check(module, [results["r", i] for i in range(3)], [references[4]] * 3)
    assert results["short", 0].token_ids == results["short", 1].token_ids
    assert results["short", 0].error is None
    assert engine.stats().num_used_blocks == 0
