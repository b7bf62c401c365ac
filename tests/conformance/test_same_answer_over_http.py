"""Same request, same answer, as a client sees it.

Text and logprobs over HTTP have the same bits alone and with a prediction after a cache hit.
"""

import asyncio

import openai
import pytest

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
