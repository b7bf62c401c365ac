"""Measure a batch against clients that send the same requests, and what others feel of a batch.

    .venv/bin/python scripts/bench/batches.py [--requests 200] [--concurrency 32]

It starts a server on the default model, with its files in a temporary folder. Every phase has
prompts of its own, so that none finds another's in the prefix cache. Printed are answers a second,
and the times to the first token of single streamed requests, which follow one another.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from typing import Any

import httpx
from servers import stonechat

NUM_TOKENS = 24
NUM_PROBES = 12
ENDED = ("completed", "failed", "expired", "cancelled")


def body(phase: str, number: int) -> dict[str, Any]:
    text = f"{phase}: name {number % 9 + 2} rivers of country number {number}."
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_completion_tokens": NUM_TOKENS, "temperature": 0}


async def by_clients(client: httpx.AsyncClient, phase: str, num: int, num_at_once: int) -> float:
    """Send the requests, so many at a time. Returns the seconds."""
    numbers = iter(range(num))

    async def send() -> None:
        for number in numbers:
            answer = await client.post("/v1/chat/completions", json=body(phase, number))
            assert answer.status_code == 200, answer.text

    started = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(num_at_once)))
    return time.perf_counter() - started


async def create_batch(client: httpx.AsyncClient, phase: str, num: int) -> Any:
    url = "/v1/chat/completions"
    lines = [
        {"custom_id": str(number), "method": "POST", "url": url, "body": body(phase, number)}
        for number in range(num)
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    answer = await client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}
    )
    request = {"endpoint": url, "completion_window": "24h", "input_file_id": answer.json()["id"]}
    return (await client.post("/v1/batches", json=request)).json()


async def by_batch(client: httpx.AsyncClient, phase: str, num: int) -> float:
    """Run the requests as a batch. Returns the seconds from its creation to its end."""
    started = time.perf_counter()
    batch = await create_batch(client, phase, num)
    while batch["status"] not in ENDED:
        await asyncio.sleep(0.2)
        batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
    assert batch["request_counts"]["completed"] == num, batch
    return time.perf_counter() - started


async def first_tokens(client: httpx.AsyncClient, phase: str) -> str:
    """The times to the first token of streamed requests, one after the other."""
    times = []
    for number in range(NUM_PROBES):
        started = time.perf_counter()
        fields = body(phase, number) | {"stream": True, "max_completion_tokens": 8}
        is_first = True
        async with client.stream("POST", "/v1/chat/completions", json=fields) as answer:
            async for line in answer.aiter_lines():
                if is_first and '"content":"' in line and '"content":""' not in line:
                    times.append(time.perf_counter() - started)
                    is_first = False
    return f"median {statistics.median(times) * 1000:.0f} ms, most {max(times) * 1000:.0f} ms"


async def measure(url: str, num: int, num_at_once: int) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await by_clients(client, "warm", 2 * num_at_once, num_at_once)
        for round in range(2):  # in turn, because a machine is not always equally fast
            seconds = await by_clients(client, f"clients {round}", num, num_at_once)
            print(f"{num_at_once} clients: {num / seconds:.1f} answers a second")
            seconds = await by_batch(client, f"batch {round}", num)
            print(f"batch: {num / seconds:.1f} answers a second")
        print("first token alone:", await first_tokens(client, "alone"))
        for round in range(2):
            load = asyncio.ensure_future(by_clients(client, f"load {round}", 10**6, num_at_once))
            await asyncio.sleep(1)
            beside = await first_tokens(client, f"crowd {round}")
            print(f"first token beside {num_at_once} clients:", beside)
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
            batch = await create_batch(client, f"behind {round}", 10_000)
            while batch["status"] != "in_progress":
                batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
            await asyncio.sleep(1)
            beside = await first_tokens(client, f"beside {round}")
            print("first token beside a batch:", beside)
            await client.post(f"/v1/batches/{batch['id']}/cancel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--ledger", f"{folder}/usage.db", "--files-dir", f"{folder}/files"]
        with stonechat("serve", *flags, "--keys-file", "off", "--log-level", "warning") as server:
            asyncio.run(measure(server.address, arguments.requests, arguments.concurrency))


if __name__ == "__main__":
    main()
