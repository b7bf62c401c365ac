"""Same request, same answer, on the native backend.

A seeded or greedy request has the same bits alone, among others, after a cache hit, with its prompt
computed in chunks, and after preemption.
"""

import pytest

from stonechat_models import EngineConfig, GenerateRequest, SamplingParams
from stonechat_models.runtime.build import build_engine
from tests.nightly import nightly

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = [
    "Write a long story about a lighthouse keeper who collects maps of places that are not there.",
    "List the planets, and say one thing about each of them. Then list them in reverse.",
]


@pytest.fixture(scope="module")
def start(say):
    """Return a function that builds an engine on the default model. Loading it is cheap."""

    def build(**changes):
        config = EngineConfig(
            model="default", **{"kv_cache_bytes": 64 << 20, "threads": 1, **changes}
        )
        return build_engine(config, say)

    return build


def requests(tokenizer, prefix=""):
    """Return greedy and sampled requests that use much of the sampler, logprobs included."""
    kinds = [
        SamplingParams(temperature=0.0, max_tokens=24, top_logprobs=3),
        SamplingParams(temperature=1.0, seed=5, max_tokens=24, top_logprobs=0),
        SamplingParams(
            temperature=1.3,
            top_p=0.9,
            seed=-7,
            n=2,
            max_tokens=24,
            frequency_penalty=0.5,
            presence_penalty=0.5,
            top_logprobs=2,
        ),
    ]
    return [
        GenerateRequest(
            request_id=f"{prefix}{i}-{j}",
            prompt_token_ids=tokenizer.encode(PROMPT.format(question)),
            params=params,
        )
        for i, question in enumerate(QUESTIONS)
        for j, params in enumerate(kinds)
    ]


def run(engine, batch):
    for request in batch:
        engine.add(request)
    return drain(engine)


def drain(engine):
    """Return (token ids, logprobs) per (request, choice), exactly as the engine returns them."""
    results = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            ids, logprobs = results.setdefault((output.request_id, output.index), ([], []))
            ids.extend(output.token_ids)
            logprobs.extend(output.logprobs or ())
    return results


def bare(results, prefix=""):
    """Return the results of the requests with `prefix`, which their new names lack."""
    return {
        (name.removeprefix(prefix), index): value
        for (name, index), value in results.items()
        if name.startswith(prefix)
    }


@pytest.fixture(scope="module")
def expected(start):
    """Return the result of each request alone, on an engine without a prefix cache."""
    engine, tokenizer = start(prefix_caching=False)
    if engine.model.info.backend != "native":
        pytest.skip(f"the native backend is not available: {engine.model.info.backend}")
    results = {}
    for request in requests(tokenizer):
        results |= run(engine, [request])
    return results


def test_among_fifteen_others(start, expected):
    engine, tokenizer = start()
    others = [
        GenerateRequest(
            request_id=f"other{i}",
            prompt_token_ids=tokenizer.encode(PROMPT.format(f"Tell me about the number {i}.")),
            params=SamplingParams(seed=i, max_tokens=24),
        )
        for i in range(15)
    ]
    tested_requests = requests(tokenizer)
    results = run(engine, [*others[:8], *tested_requests, *others[8:]])
    assert {k: v for k, v in results.items() if not k[0].startswith("other")} == expected


def test_after_a_cache_hit(start, expected):
    engine, tokenizer = start()
    run(engine, requests(tokenizer, "first-"))
    hits_before = engine.stats().num_cache_hit_tokens
    assert bare(run(engine, requests(tokenizer, "again-")), "again-") == expected
    assert engine.stats().num_cache_hit_tokens > hits_before


@pytest.mark.parametrize("max_batch_tokens", [7, *nightly(33)])
def test_with_the_prompt_in_chunks(start, expected, max_batch_tokens):
    engine, tokenizer = start(max_batch_tokens=max_batch_tokens, prefix_caching=False)
    assert run(engine, requests(tokenizer)) == expected


def test_after_preemption(start, expected):
    bytes_per_token = start()[0].model.info.kv_bytes_per_token
    engine, tokenizer = start(
        max_model_len=112, prefix_caching=False, kv_cache_bytes=14 * 16 * bytes_per_token
    )
    results = run(engine, requests(tokenizer))
    assert engine.stats().num_preemptions > 0
    assert results == expected


def test_with_another_number_of_threads(start, expected):
    engine, tokenizer = start(threads=2)
    assert run(engine, requests(tokenizer)) == expected
