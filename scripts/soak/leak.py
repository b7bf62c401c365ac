"""Send many short requests to one engine, and print the resident memory after each thousand.

    .venv/bin/python scripts/soak/leak.py --requests 11000

The exit status is 1 if the memory grows by more than `--allowed` MiB after the first thousand, or
if sequences still hold blocks at the end.
"""

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from stonechat_models import AsyncEngine, EngineConfig, GenerateRequest, SamplingParams, StopRules

AT_ONCE = 50
ROUND = 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--requests", type=int, default=11_000)
    parser.add_argument(
        "--allowed", type=float, default=32.0, help="growth of memory that is allowed, in MiB"
    )
    return asyncio.run(run(parser.parse_args()))


async def run(arguments: argparse.Namespace) -> int:
    config = EngineConfig(model=arguments.model, kv_cache_bytes=64 << 20, threads=1)
    engine = AsyncEngine.from_config(config)
    await engine.start()
    sizes = []
    for start in range(0, arguments.requests, ROUND):
        for first in range(start, start + ROUND, AT_ONCE):
            await asyncio.gather(*(generate(engine, first + i) for i in range(AT_ONCE)))
        gc.collect()
        sizes.append(resident_mebibytes())
        print(f"{start + ROUND:7} requests: {sizes[-1]:8.1f} MiB", flush=True)
    num_held_blocks = engine.stats().num_used_blocks
    await engine.shutdown()
    growth = max(sizes) - sizes[0]
    print(f"grew by {growth:.1f} MiB after the first {ROUND}; {num_held_blocks} blocks still held")
    return int(growth > arguments.allowed or num_held_blocks > 0)


async def generate(engine: AsyncEngine, i: int) -> None:
    """Generate two tokens for a prompt of six, with or without logprobs and stop strings."""
    request = GenerateRequest(
        request_id=str(i),
        prompt_token_ids=[(7 * i + j) % 40_000 + 100 for j in range(6)],
        params=SamplingParams(
            max_tokens=2,
            top_logprobs=2 if i % 3 == 0 else None,
            stop=StopRules(strings=("zzz",)) if i % 2 else None,
        ),
    )
    async for _ in engine.generate(request):
        pass


def resident_mebibytes() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) / 1024 for x in lines if x.startswith("VmRSS"))


if __name__ == "__main__":
    sys.exit(main())
