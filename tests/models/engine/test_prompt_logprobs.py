"""Log-probabilities of prompts equal those of one plain forward pass, however they are computed."""

import random
from functools import partial

import pytest
import torch

from stonechat_models.types import FinishReason, SamplingParams
from tests.models import engines
from tests.models.engine.test_engine import FailingModel, raise_error
from tests.models.engines import add, reference_prompt, run
from tests.models.tiny_models import VOCAB_SIZE, tiny_model
from tests.nightly import nightly, one_in

PROMPT = [(7 * i * i + 3) % VOCAB_SIZE for i in range(41)]


@pytest.fixture(scope="module")
def module():
    return tiny_model("llama", num_hidden_layers=1)


@pytest.fixture(params=[False, True], ids=["in-order", "overlap"])
def make_engine(request):
    return partial(engines.make_engine, overlap=request.param)


def scored(k=3, **changes):
    return SamplingParams(
        **{"max_tokens": 3, "temperature": 0.0, "prompt_logprobs": k, "seed": 1, **changes}
    )


def check(result, module, prompt, k=3, tolerance=1e-4):
    """Compare a result with a plain forward pass of transformers."""
    expected = reference_prompt(module, prompt)
    assert [entry.token_id for entry in result.prompt_logprobs] == prompt[1:]
    for entry, row in zip(result.prompt_logprobs, expected, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=tolerance)
        surely_better = int((row > row[entry.token_id] + tolerance).sum())
        perhaps_better = int((row > row[entry.token_id] - tolerance).sum())
        assert 1 + surely_better <= entry.rank <= 1 + perhaps_better
        best = row.topk(k).values.tolist() if k else []
        assert entry.top_logprobs == pytest.approx(best, abs=tolerance)
        at_tops = [float(row[token]) for token in entry.top_ids]
        assert entry.top_logprobs == pytest.approx(at_tops, abs=tolerance)
        if entry.rank <= k:
            assert entry.logprob in entry.top_logprobs


FAMILIES = [
    *("llama", "gemma2", "gemma3", "gpt_neox", "qwen3_moe", "gpt_oss", "llama4_text"),
    *("lfm2", "qwen3_5_text", "falcon_h1", "kimi_linear", "mamba2"),
    *("bloom", "rwkv", "minimax", "recurrent_gemma"),
    *("mamba", "jamba"),
]


@pytest.mark.parametrize("family", one_in(3, FAMILIES))
def test_every_kind_of_model_in_parts_and_in_company(family):
    """Prompts are split by the budget, by rows of logits and by other sequences."""
    module = tiny_model(family)
    engine = engines.make_engine(module, max_batch_tokens=19)
    if engine.model.info.exact_chunks:
        engine.scheduler.prompt_rows.max_rows = 7
    prompts = {"long": PROMPT, "short": [5, 6, 7], "other": PROMPT[5:20]}
    for name, prompt in prompts.items():
        add(engine, name, prompt, scored())
        add(engine, f"plain {name}", prompt[::-1], scored(None))
    results = run(engine)
    alone = engines.make_engine(module)
    for name, prompt in prompts.items():
        check(results[name, 0], module, prompt)
        add(alone, name, prompt, scored(None))
        add(alone, f"plain {name}", prompt[::-1], scored(None))
        for request_id, expected in run(alone).items():
            assert results[request_id].token_ids == expected.token_ids
        assert results[f"plain {name}", 0].prompt_logprobs is None


@pytest.mark.parametrize("k", [0, 1, 20])
def test_as_many_likely_tokens_as_wanted(make_engine, module, k):
    engine = make_engine(module)
    add(engine, "r", PROMPT, scored(k))
    add(engine, "other", PROMPT[::-1], scored(4))
    results = run(engine)
    check(results["r", 0], module, PROMPT, k)
    check(results["other", 0], module, PROMPT[::-1], 4)
    assert {len(entry.top_ids) for entry in results["r", 0].prompt_logprobs} == {k}


def test_equal_logits_have_equal_ranks(make_engine):
    module = tiny_model("llama")
    with torch.no_grad():
        module.lm_head.weight[:] = 0.0
    engine = make_engine(module)
    add(engine, "r", PROMPT, scored(2))
    for entry in run(engine)["r", 0].prompt_logprobs:
        assert entry.rank == 1
        assert entry.top_logprobs == (entry.logprob, entry.logprob)


def test_a_prompt_of_one_token_has_none(make_engine, module):
    engine = make_engine(module)
    add(engine, "r", [5], scored())
    result = run(engine)["r", 0]
    assert result.prompt_logprobs == ()
    assert len(result.token_ids) == 3


def test_a_token_has_the_same_logprob_in_an_answer_and_in_a_prompt(make_engine, module):
    engine = make_engine(module)
    add(engine, "answer", PROMPT, scored(2, max_tokens=8, top_logprobs=2))
    answer = run(engine)["answer", 0]
    add(engine, "prompt", PROMPT + answer.token_ids, scored(2))
    prompt = run(engine)["prompt", 0].prompt_logprobs
    for own, again in zip(answer.logprobs, prompt[-8:], strict=True):
        assert own.token_id == again.token_id
        assert own.logprob == pytest.approx(again.logprob, abs=1e-5)
        assert own.top_ids == again.top_ids
        assert (own.rank, again.rank) == (0, 1)  # the answer is greedy


# --- max_tokens=0 ---


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_nothing_is_generated(make_engine, module, k, n):
    engine = make_engine(module, max_batch_tokens=16)
    add(engine, "r", PROMPT, scored(k, max_tokens=0, n=n))
    add(engine, "other", PROMPT[::-1], scored(None))
    results = run(engine)
    for index in range(n):
        result = results["r", index]
        assert result.token_ids == []
        assert result.finish_reason is FinishReason.LENGTH
        assert (result.prompt_logprobs is not None) == (k is not None and index == 0)
    if k is not None:
        check(results["r", 0], module, PROMPT, k)
    assert len(results["other", 0].token_ids) == 3
    stats = engine.stats()
    assert (stats.num_generated_tokens, stats.num_used_blocks) == (3, 0)
    assert stats.num_prompt_tokens == 2 * len(PROMPT)


@pytest.mark.parametrize("family", ["lfm2", "mamba", "bloom"])
def test_nothing_is_generated_by_models_with_a_state(family):
    module = tiny_model(family)
    engine = engines.make_engine(module, max_batch_tokens=64)
    add(engine, "r", PROMPT, scored(max_tokens=0, n=2))
    add(engine, "plain", PROMPT[::-1], scored(None, max_tokens=0))
    results = run(engine)
    check(results["r", 0], module, PROMPT)
    assert {r.finish_reason for r in results.values()} == {FinishReason.LENGTH}


def test_a_prompt_may_fill_the_context_if_nothing_is_generated(make_engine, module):
    engine = make_engine(module, max_model_len=len(PROMPT))
    add(engine, "r", PROMPT, scored(max_tokens=0))
    check(run(engine)["r", 0], module, PROMPT)


def test_a_prompt_can_be_computed_for_the_prefix_cache(make_engine, module):
    engine = make_engine(module)
    add(engine, "first", PROMPT, scored(None, max_tokens=0))
    run(engine)
    add(engine, "second", PROMPT, scored(None))
    assert run(engine)["second", 0].num_cached_tokens == 40


# --- the prefix cache, choices, drafts, preemption, faults ---


def test_nothing_is_read_from_the_prefix_cache_but_written_to_it(make_engine, module):
    engine = make_engine(module)
    add(engine, "first", PROMPT, scored())
    run(engine)
    add(engine, "scored", PROMPT, scored())
    result = run(engine)["scored", 0]
    assert result.num_cached_tokens == 0
    check(result, module, PROMPT)
    assert engine.stats().num_cache_queried_tokens == 0
    add(engine, "plain", PROMPT, scored(None))
    assert run(engine)["plain", 0].num_cached_tokens == 40


@pytest.mark.parametrize("family", ["llama", "lfm2", "bloom"])
def test_choices_share_one_prompt(make_engine, family):
    module = tiny_model(family)
    engine = make_engine(module)
    add(engine, "plain", PROMPT, scored(None, n=4, temperature=1.0))
    expected = run(engine)
    engine = make_engine(module)
    add(engine, "r", PROMPT, scored(n=4, temperature=1.0))
    results = run(engine)
    check(results["r", 0], module, PROMPT)
    for index in range(4):
        assert results["r", index].token_ids == expected["plain", index].token_ids
        assert (results["r", index].prompt_logprobs is None) == (index > 0)


def test_the_next_choice_continues_if_the_first_is_aborted(make_engine, module):
    engine = make_engine(module, max_batch_tokens=8)
    add(engine, "r", PROMPT, scored(n=2))
    for _ in range(3):
        engine.step()
    engine.abort("r", 0)
    results = run(engine)
    check(results["r", 1], module, PROMPT)


def test_drafts_change_nothing(make_engine, module):
    engine = make_engine(module)
    add(engine, "r", PROMPT, scored(max_tokens=12))
    expected = run(engine)["r", 0]
    engine = make_engine(module, prompt_lookup="on")
    add(engine, "r", PROMPT, scored(max_tokens=12), prediction=tuple(expected.token_ids))
    result = run(engine)["r", 0]
    assert engine.stats().num_accepted_draft_tokens > 0
    assert result.token_ids == expected.token_ids
    check(result, module, PROMPT)


@pytest.mark.parametrize("family", ["llama", "lfm2", "mamba"])
@pytest.mark.parametrize("prefix_caching", [True, *nightly(False)])
def test_preempted_prompts_are_continued(make_engine, family, prefix_caching):
    """Decoding sequences take the blocks of a prompt that is half computed."""
    module = tiny_model(family)
    engine = make_engine(
        module,
        num_blocks=16,
        max_model_len=56,
        max_batch_tokens=12 if family != "mamba" else 64,
        prefix_caching=prefix_caching,
    )
    if family != "mamba":
        engine.scheduler.prompt_rows.max_rows = 3
    rng = random.Random(0)
    prompts = [rng.choices(range(VOCAB_SIZE), k=k) for k in (8, 4, 24, 30)]
    for i, prompt in enumerate(prompts):
        add(engine, str(i), prompt, scored(max_tokens=24, ignore_eos=True))
    results = run(engine)
    assert engine.stats().num_preemptions > 0
    for i, prompt in enumerate(prompts):
        check(results[str(i), 0], module, prompt)
        assert len(results[str(i), 0].token_ids) == 24


def test_a_fault_of_another_request_changes_nothing(make_engine, module):
    engine = make_engine(module, max_batch_tokens=16)
    engine.model = FailingModel(engine.model, 200, raise_error)
    prompt = [t for t in PROMPT if t != 200]
    add(engine, "r", prompt, scored(logit_bias={200: -100}))
    add(engine, "bad", [*prompt[:20], 200], scored())
    add(engine, "too", prompt[::-1], scored(logit_bias={200: -100}))
    results = run(engine)
    assert results["bad", 0].finish_reason is FinishReason.ERROR
    check(results["r", 0], module, prompt)
    check(results["too", 0], module, prompt[::-1])


def test_logits_that_are_not_finite_end_the_request(make_engine, module):
    def one_nan(batch, logits):
        logits[0] = float("nan")
        return logits

    engine = make_engine(module)
    engine.model = FailingModel(engine.model, 200, one_nan)
    add(engine, "bad", [200, 5, 6], scored(n=2))
    results = run(engine)
    for index in range(2):
        assert results["bad", index].error == "the model's logits are not finite"
    add(engine, "good", PROMPT, scored())
    check(run(engine)["good", 0], module, PROMPT)
    assert not engine.is_broken


# --- the bound on rows of logits ---


def test_a_step_has_few_rows_and_others_do_not_wait(module):
    engine = engines.make_engine(module)
    engine.scheduler.prompt_rows.max_rows = 10
    num_rows = []
    forward = engine.model.forward
    engine.model.forward = lambda batch: num_rows.append(len(batch.logits_index)) or forward(batch)
    for i in range(3):
        add(engine, str(i), PROMPT, scored(max_tokens=0))
    add(engine, "chat", PROMPT[::-1], scored(None))
    first = engine.step()
    assert [output.request_id for output in first] == ["chat"]
    run(engine)
    assert max(num_rows) <= 12  # with the last rows of two prompts
    assert len(num_rows) == 12  # of 120 rows


def test_the_bound_follows_from_the_vocabulary():
    info = engines.model_info(vocab_size=151_936)
    assert info.max_prompt_rows * 4 * info.vocab_size <= 256 << 20
    assert info.max_prompt_rows > 400


def test_whole_prompts_wait_for_each_other():
    module = tiny_model("mamba")
    engine = engines.make_engine(module, max_batch_tokens=128)
    engine.scheduler.prompt_rows.max_rows = 50
    num_rows = []
    forward = engine.model.forward
    engine.model.forward = lambda batch: num_rows.append(len(batch.logits_index)) or forward(batch)
    for i in range(3):
        add(engine, str(i), PROMPT, scored(max_tokens=0))
    results = run(engine)
    assert num_rows == [41, 41, 41]
    for i in range(3):
        check(results[str(i), 0], module, PROMPT)
