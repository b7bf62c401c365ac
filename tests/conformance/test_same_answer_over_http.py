"""Same request, same answer, as a client sees it.

Text and logprobs over HTTP have the same bits alone, with a prediction after a cache hit, and among
others on a server that computes prompts in chunks and preempts.
"""

import asyncio

import openai
import pytest

from tests.conformance.conftest import live_server

NUM_OTHERS = 12
FIELDS = [
    {"temperature": 0},
    {"temperature": 1.1, "seed": 7, "n": 2},
    {"temperature": 0.8, "seed": -3, "top_p": 0.9, "frequency_penalty": 0.4},
]
QUESTION = "Write a story about a lighthouse keeper who collects maps of places that are not there."


async def ask(client, model, fields, question=QUESTION):
    """Return (text, tokens with their log-probabilities) for each choice."""
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        logprobs=True,
        top_logprobs=2,
        **{"max_completion_tokens": 40, **fields},
    )
    return [
        (
            choice.message.content,
            [
                (t.token, t.logprob, [(top.token, top.logprob) for top in t.top_logprobs])
                for t in choice.logprobs.content
            ],
        )
        for choice in answer.choices
    ]


def run(server, test):
    async def main():
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="any", max_retries=0
        ) as client:
            return await test(client)

    return asyncio.run(main())


async def one_by_one(client, model):
    return [await ask(client, model, fields) for fields in FIELDS]


@pytest.fixture(scope="module")
def expected(server):
    if server.engine.model.backend != "native":
        pytest.skip(f"the native backend is not available: {server.engine.model.backend}")
    return run(server, lambda client: one_by_one(client, server.model))


async def predicted(client, model, answers):
    text = "Once upon a time, " + answers[0][0][0]
    prediction = {"prediction": {"type": "content", "content": text}}
    return [await ask(client, model, {**fields, **prediction}) for fields in FIELDS]


def test_with_a_prediction_after_a_cache_hit(server, expected):
    before = server.engine.stats()
    answers = run(server, lambda client: predicted(client, server.model, expected))
    assert answers == expected
    after = server.engine.stats()
    assert after.num_cache_hit_tokens > before.num_cache_hit_tokens
    assert after.num_accepted_draft_tokens - before.num_accepted_draft_tokens > 20


async def among_others(client, model):
    others = [
        ask(
            client,
            model,
            {"seed": i, "max_completion_tokens": 12},
            f"Tell me about the number {i}.",
        )
        for i in range(NUM_OTHERS)
    ]
    tested_answers = [ask(client, model, fields) for fields in FIELDS]
    answers = await asyncio.gather(*others[:6], *tested_answers, *others[6:])
    return answers[6 : 6 + len(FIELDS)]


def test_among_others_on_a_server_that_chunks_and_preempts(server, expected, say):
    tokens = 11 * 16
    small = tokens * server.engine.model.kv_bytes_per_token
    with live_server(
        say, kv_cache_size=small, max_model_len=160, max_batch_tokens=9, prefix_caching=False
    ) as other:
        actual = run(other, lambda client: among_others(client, other.model))
        assert other.engine.stats().num_preemptions > 0
    assert actual == expected
