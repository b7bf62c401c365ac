"""Check over HTTP that an answer has the same bits alone and in company.

Starts our server and asks for greedy and sampled answers with log-probabilities, one at a time.
Starts it anew, so that no cache helps, sends all of them at once amid other requests of several
lengths, and compares every token and every log-probability. Exits with 1 if one differs.

    PYTHONPATH=server:models python scripts/bench/same_bits.py --model model.gguf
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import httpx
from servers import stonechat

from stonechat_server.bench.targets.workload import SyntheticWorkload

Answer = list[tuple[str, float]]


def body(index: int, num_words: int, tokens: int) -> dict[str, object]:
    """A request. Its prompt, length and seed depend on its index only."""
    messages = list(SyntheticWorkload(num_words, 0.5, seed=3).prompt(index).messages)
    fields = {"temperature": 0.8 * (index % 2), "seed": index, "logprobs": True, "top_logprobs": 5}
    return {"messages": messages, "max_tokens": tokens, **fields}


async def answer(client: httpx.AsyncClient, fields: dict[str, object]) -> Answer:
    reply = await client.post("/chat/completions", json=fields)
    reply.raise_for_status()
    content = reply.json()["choices"][0]["logprobs"]["content"]
    return [
        (alternative["token"], alternative["logprob"])
        for token in content
        for alternative in (token, *token["top_logprobs"])
    ]


async def answers(url: str, requests: list[dict[str, object]], at_once: bool) -> list[Answer]:
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        if at_once:
            return await asyncio.gather(*(answer(client, fields) for fields in requests))
        return [await answer(client, fields) for fields in requests]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file or a folder")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--options", default="", help="further options of the server")
    parser.add_argument("--log", type=Path, default=Path("same_bits.log"))
    arguments = parser.parse_args()
    words = ["serve", str(arguments.model), "--threads", "2", *arguments.options.split()]
    number, tokens = arguments.prompts, arguments.tokens
    requests = [body(i, 20 + 37 * i % 150, tokens) for i in range(number)]
    company = [body(1000 + i, 5 + 91 * i % 400, tokens // 2) for i in range(number)]
    mixed = [fields for pair in zip(company, requests, strict=True) for fields in pair]

    def run(requests: list[dict[str, object]], at_once: bool) -> list[Answer]:
        with stonechat(*words, log=arguments.log) as server:
            return asyncio.run(answers(server.url, requests, at_once))

    alone, together = run(requests, False), run(mixed, True)[1::2]
    wrong = [i for i, pair in enumerate(zip(alone, together, strict=True)) if pair[0] != pair[1]]
    print(json.dumps({"prompts": arguments.prompts, "different": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
