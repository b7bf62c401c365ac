"""A model on several ranks against the same model on one, and against transformers."""

import os
import re
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch

from stonechat_models import EngineConfig, survey_model
from stonechat_models.backends.transformers.verify import random_batch
from stonechat_models.runtime.ranks import followers
from stonechat_models.types import SamplingParams
from tests.models.engines import add, deviations, greedy, make_engine, run
from tests.models.runtime.ranks.parallel_engines import (
    VOCAB_SIZE,
    parallel_engine,
    parallel_model,
    save_split_model,
)
from tests.nightly import nightly

PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23], [40, 41, 42, 43, 44]]
SHARED = list(range(60, 90))
SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=7, max_tokens=12, top_logprobs=3)
# Qwen3's mixture has norms of queries and keys, grouped heads and experts.
FAMILIES = [
    ("qwen3_moe", 2),
    *nightly(
        ("llama", 4), ("qwen2", 2), ("qwen3", 4), ("gemma2", 2), ("gemma3", 4), ("mixtral", 4)
    ),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, tmp_path_factory):
    """(the model on its ranks, the same module on one, why rank 0 gave up, the model's folder)"""
    family, num_ranks = request.param
    folder = tmp_path_factory.mktemp("split") / family
    module = save_split_model(folder, family)
    with parallel_model(folder, num_ranks) as (model, reasons):
        yield model, module, reasons, folder


def both(case, **settings):
    """The engine on several ranks, and the one on one rank."""
    model, module, *_ = case
    return parallel_engine(model, **settings), make_engine(
        module, vocab_size=VOCAB_SIZE, **settings
    )


def assert_same(results, expected):
    assert results.keys() == expected.keys()
    for key, result in results.items():
        other = expected[key]
        assert result.token_ids == other.token_ids
        assert result.num_cached_tokens == other.num_cached_tokens
        assert values(result.logprobs) == pytest.approx(values(other.logprobs), abs=1e-4)
        prompt, other_prompt = (r.prompt_logprobs or () for r in (result, other))
        assert values(prompt) == pytest.approx(values(other_prompt), abs=1e-4)


def values(entries):
    return [value for entry in entries for value in (entry.logprob, *entry.top_logprobs)]


def test_tokens_and_log_probabilities_are_those_of_one_rank(case):
    """Greedy and sampled, in chunks of prompts, with log-probabilities of prompts and choices."""
    results = []
    for engine in both(case, max_batch_tokens=8):
        for i, prompt in enumerate([*PROMPTS, SHARED]):
            add(engine, f"greedy{i}", prompt, greedy(10))
            add(engine, f"sampled{i}", prompt, replace(SAMPLED, n=2, prompt_logprobs=2))
        results.append(run(engine))
    assert_same(*results)
    for i, prompt in enumerate([*PROMPTS, SHARED]):
        assert deviations(case[1], prompt, results[0][f"greedy{i}", 0]).max() < 1e-4


def test_prefixes_are_cached_and_shared_blocks_are_copied(case):
    results = []
    for engine in both(case):
        add(engine, "first", SHARED, greedy(4))
        run(engine)
        add(engine, "again", [*SHARED, 3, 4], replace(SAMPLED, n=3))
        results.append(run(engine))
    assert results[0]["again", 0].num_cached_tokens == 28
    assert_same(*results)


def test_preempted_sequences_are_computed_again(case):
    results = []
    for engine in both(case, num_blocks=9, max_model_len=36, prefix_caching=False):
        for i, prompt in enumerate(PROMPTS):
            add(engine, str(i), prompt, SAMPLED)
        results.append(run(engine))
        assert engine.stats().num_preemptions > 0
    assert_same(*results)


def test_hidden_states_are_those_of_one_rank(case):
    """The final hidden states that embeddings are made of."""
    batch = random_batch([(9, 9), (5, 5)], 4, vocab_size=VOCAB_SIZE)
    vectors = [engine.model.forward_hidden(batch)[1] for engine in both(case)]
    assert vectors[0].shape == (2, 32)
    torch.testing.assert_close(*vectors, atol=1e-4, rtol=1e-4)


def test_each_rank_has_its_part_of_the_weights_and_of_the_cache(case):
    model, module, _, folder = case
    engine, whole = both(case)
    num_ranks = len(model._followers._children) + 1
    assert engine.model.info.kv_bytes_per_token * num_ranks == whole.model.info.kv_bytes_per_token
    local = sum(
        parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel()
        for parameter in model._model.module.parameters()
    )
    assert local < 1.2 / num_ranks * sum(p.numel() for p in module.parameters())
    config = EngineConfig(
        model=str(folder), device="cpu", dtype="float32", tensor_parallel=num_ranks
    )
    plan = survey_model(config, lambda line: None)
    (form,) = (form for form in plan.forms if form.is_default)
    assert (plan.refusal, plan.num_ranks) == (None, num_ranks)
    assert form.weight_bytes == 4 * local
    assert form.kv_bytes_per_token == engine.model.info.kv_bytes_per_token
    assert 0 < model.least_free_memory() < 2**50


def test_a_step_that_never_ends_and_a_rank_that_ends_are_noticed(case, monkeypatch):
    """The last test: it ends a rank."""
    model, _, reasons, _ = case
    engine = parallel_engine(model)
    pids = [child.process_id for child in model._followers._children]
    monkeypatch.setattr(followers, "STEP_SECONDS", 0.5)
    assert reasons == []
    os.kill(pids[-1], signal.SIGSTOP)
    add(engine, "r", PROMPTS[0], greedy(3))
    outputs = []
    thread = threading.Thread(target=lambda: outputs.extend(run(engine).values()))
    thread.start()
    wait_for_reason(reasons, "has not ended within")
    os.kill(pids[-1], signal.SIGKILL)
    wait_for_reason(reasons, rf"rank {len(pids)} was ended by SIGKILL")
    thread.join(60)
    assert outputs[0].finish_reason == "error"


def wait_for_reason(reasons, text):
    end = time.monotonic() + 60
    while not any(re.search(text, str(reason)) for reason in reasons):
        assert time.monotonic() < end, reasons
        time.sleep(0.02)
