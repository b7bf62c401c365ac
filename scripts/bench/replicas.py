"""Compare `stonechat ray deploy` with one `stonechat serve`: answers, cache hits, cost of a token.

    .venv/bin/python scripts/bench/replicas.py --model DIR --replicas 2 --part answers
    .venv/bin/python scripts/bench/replicas.py --model DIR --replicas 2 --part conversations
    .venv/bin/python scripts/bench/replicas.py --model DIR --replicas 2 --part tokens

Needs the extra `ray`, and no other Ray cluster on this machine. `answers` sends the same requests
with the same seeds to both, one after the other and then all at once. `conversations` holds
conversations of several turns, with and without routing by prefix. `tokens` times streams through
the server alone, through HAProxy, and through the proxy of Ray Serve that is written in Python.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx
import psutil
from servers import RunningServer, stonechat

WORDS = "stone river cold bright seven window music tell me about the old house near that hill"


KINDS = {
    "ServeReplica:stonechat:Replica": "engine",
    "ServeReplica:stonechat:Ingress": "ingress",
    "haproxy": "proxy",
    "ProxyActor": "proxy",
    "stonechat_server.cli serve": "serve",
}
"""Words in the command lines of processes, and what those processes are."""


def cpu_seconds(process_id: int) -> Counter[str]:
    """The CPU seconds so far of a process and those below it, by their kind."""
    own, seconds = psutil.Process(process_id), Counter[str]()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            kind = next((kind for word, kind in KINDS.items() if word in line), "ray")
            times = process.cpu_times()
            seconds[kind] += times.user + times.system
    return seconds


def prompt(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(WORDS.split(), k=num_words))


async def ask(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/v1/chat/completions", json={"model": "m", **fields})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


# --- answers ---


async def answers(url: str, num_requests: int) -> list[Any]:
    """The choices of seeded requests: one after the other, then all at once."""
    rng = random.Random(1)
    bodies = [
        {
            "messages": [{"role": "user", "content": prompt(rng, rng.randint(1, 60))}],
            "max_tokens": rng.randint(1, 60),
            "temperature": rng.choice([0, 0.7, 1.0]),
            "seed": i,
            "n": rng.choice([1, 1, 2]),
            "logprobs": True,
            "stop": rng.choice([None, ["e"]]),
        }
        for i in range(num_requests)
    ]
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        one_by_one = [await ask(client, **body) for body in bodies]
        at_once = await asyncio.gather(*(ask(client, **body) for body in bodies))
    return [_text(answer) for answer in (*one_by_one, *at_once)]


def _text(answer: dict[str, Any]) -> Any:
    choices = [(c["message"]["content"], c["finish_reason"]) for c in answer["choices"]]
    usage = answer["usage"]
    return choices, usage["prompt_tokens"], usage["completion_tokens"]


# --- conversations ---


async def conversations(url: str, number: int, turns: int) -> dict[str, Any]:
    """Hold conversations at the same time. Return the share of later turns' tokens in the cache."""
    rng = random.Random(2)
    system = {"role": "system", "content": prompt(rng, 40)}
    usages: list[dict[str, Any]] = []

    async def hold(client: httpx.AsyncClient, seed: int) -> None:
        own = random.Random(seed)
        messages = [system]
        for turn in range(turns):
            await asyncio.sleep(own.uniform(0.0, 0.5))
            messages.append({"role": "user", "content": prompt(own, 30)})
            answer = await ask(client, messages=messages, max_tokens=24, seed=seed)
            messages.append(answer["choices"][0]["message"])
            if turn:
                usages.append(answer["usage"])

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await asyncio.gather(*(hold(client, seed) for seed in range(number)))
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    asked = sum(usage["prompt_tokens"] for usage in usages)
    return {"cached": cached, "asked": asked, "share": round(cached / asked, 3)}


# --- tokens ---


async def tokens(running: RunningServer, streams: int, num_tokens: int) -> dict[str, Any]:
    """Milliseconds from event to event of a stream, tokens a second of all streams, and the CPU
    microseconds that a token costs each kind of process."""

    async def read(client: httpx.AsyncClient, seed: int) -> tuple[float, float, int]:
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": prompt(random.Random(seed), 20)}],
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        begin, first, number = time.monotonic(), 0.0, 0
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    first, number = first or time.monotonic(), number + 1
        return first - begin, time.monotonic() - first, number

    async with httpx.AsyncClient(base_url=running.address, timeout=120) as client:
        await read(client, 0)
        begin, before = time.monotonic(), cpu_seconds(running.process_id)
        results = await asyncio.gather(*(read(client, 1 + seed) for seed in range(streams)))
        seconds, after = time.monotonic() - begin, cpu_seconds(running.process_id)
    micros = {kind: (after[kind] - before[kind]) * 1e6 / streams / num_tokens for kind in after}
    return {
        "streams": streams,
        "first_ms": round(1000 * sum(first for first, _, _ in results) / streams, 1),
        "token_ms": round(1000 * sum(rest for _, rest, _ in results) / streams / num_tokens, 2),
        "tokens_a_second": round(streams * num_tokens / seconds),
        "events": sum(number for _, _, number in results),
        "cpu_us_a_token": {kind: round(value) for kind, value in micros.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--part", choices=["answers", "conversations", "tokens"], required=True)
    parser.add_argument("--flags", default="", help="further flags of both servers")
    parser.add_argument("--ray-flags", default="", help="further flags of `stonechat ray deploy`")
    parser.add_argument("--number", type=int, default=24, help="requests, or conversations")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["serve", "haproxy", "proxy", "by_prefix", "by_load"],
        help="only these (tokens: serve, haproxy, proxy; conversations: serve, by_prefix, by_load)",
    )
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num-tokens", type=int, default=200)
    arguments = parser.parse_args()
    common = [arguments.model, "--served-model-name", "m", "--threads", "1"]
    common += ["--kv-cache-size", "32MiB", "--ledger", "off", "--keys-file", "off"]
    common += ["--files-dir", "off", *arguments.flags.split()]
    ray = ["ray", "deploy", *common, "--replicas", str(arguments.replicas)]
    ray += arguments.ray_flags.split()
    report: dict[str, Any] = {"replicas": arguments.replicas}
    if arguments.part == "answers":
        found = []
        for words in (["serve", *common], ray):
            with stonechat(*words) as running:
                found.append(asyncio.run(answers(running.address, arguments.number)))
        equal = [left == right for left, right in zip(*found, strict=True)]
        half = len(equal) // 2
        report |= {"equal_one_by_one": sum(equal[:half]), "equal_at_once": sum(equal[half:])}
        report["of"] = half
    elif arguments.part == "conversations":
        routings = {"serve": ["serve", *common], "by_prefix": ray,
                    "by_load": [*ray, "--no-prefix-routing"]}  # fmt: skip
        for name in arguments.ways or routings:
            with stonechat(*routings[name]) as running:
                coroutine = conversations(running.address, arguments.number, arguments.turns)
                report[name] = asyncio.run(coroutine)
    else:
        cases = {"serve": (["serve", *common], "0"), "haproxy": (ray, "1"), "proxy": (ray, "0")}
        for name in arguments.ways or cases:
            words, haproxy = cases[name]
            with stonechat(*words, RAY_SERVE_ENABLE_HA_PROXY=haproxy) as running:
                report[name] = [
                    asyncio.run(tokens(running, streams, arguments.num_tokens))
                    for streams in arguments.streams
                ]
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
