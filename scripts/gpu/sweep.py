"""Time the attention kernels with other tile sizes than today's, and cuBLAS against cublasLt.

    python scripts/gpu/sweep.py --seconds 100 --out sweep.jsonl

The most telling cases come first. Each result is a line of JSON, written as soon as it is there; a
variant that does not fit or gives other numbers than the first is noted. A table of the best tile
sizes per case ends it. Kernels are compiled ahead by worker processes. A timing is the median of
runs of several calls, which wait in the device's queue and read more memory than a cache holds.
`--dry-run` runs tiny cases in Triton's interpreter.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # Triton must not be imported before `main` has chosen its interpreter
    from sweep_run import Sweep

CACHE_TOKENS = 2_200_000
"""Of the KV cache that all cases share, with 8 KV heads of size 128: 9 GB."""


def main(words: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=100.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(words)
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    from sweep_run import Sweep

    device = torch.device("cpu" if arguments.dry_run else "cuda:0")
    with arguments.out.open("w", encoding="utf-8") as out:
        sweep = Sweep(device, started + arguments.seconds, out, arguments.workers)
        try:
            run_all(sweep, device)
        finally:
            sweep.stop()
            print(table(sweep.results), flush=True)
    return 0 if any("rate" in result for result in sweep.results) else 1


def run_all(sweep: "Sweep", device: torch.device) -> None:
    from sweep_cases import BLOCK_SIZE, PRODUCTS, ROWS, main_cases, more_cases, tiny_cases
    from sweep_run import read_rate

    is_dry_run = device.type != "cuda"
    cases = tiny_cases() if is_dry_run else [*main_cases(), *more_cases()]
    sweep.compile_ahead(cases)
    tokens = 64 * BLOCK_SIZE if is_dry_run else CACHE_TOKENS
    head_size = max(case.head_size for case in cases)
    cache = torch.empty(2, tokens * 8 * head_size, dtype=torch.bfloat16, device=device).normal_()
    card = "CPU" if is_dry_run else torch.cuda.get_device_name(device)
    sweep.note(kind="device", name=card, rate=read_rate(cache), torch=torch.__version__)
    for case in cases:
        sweep.run(case, cache, limit=2 if is_dry_run else None)
    if is_dry_run:
        sweep.run_products({"tiny": ((32, 48),)}, (1, 2))
    else:
        sweep.run_products(PRODUCTS, ROWS)


def table(results: list[dict[str, Any]]) -> str:
    """The best tile sizes of each case beside today's, and the faster library of each product."""
    unknown: dict[str, Any] = {"rate": 1.0, "name": "?"}
    device = next((r for r in results if r["kind"] == "device"), unknown)
    lines = [
        f"{device['name']}: reads {device['rate'] / 1e9:.0f} GB/s",
        "| case | best: keys, rows, warps, stages, waves | us | today us | today/best | rate |",
        "|---|---|---|---|---|---|",
    ]
    cases: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for result in results:
        if result["kind"] in ("decode", "prefill"):
            names = ("kind", "head_size", "group", "batch", "queries", "context")
            cases.setdefault(tuple(result[name] for name in names), []).append(result)
    for case, found in cases.items():
        lines.append(_row(case, found, device["rate"]))
    lines += ["", "| product | M, K, N | us by library | best rate |", "|---|---|---|---|"]
    products: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for result in results:
        if result["kind"] == "product" and "us" in result:
            key = tuple(result[name] for name in ("model", "m", "k", "n"))
            products.setdefault(key, {})[result["library"]] = result
    for (model, m, k, n), by_library in products.items():
        times = ", ".join(f"{name} {result['us']:.1f}" for name, result in by_library.items())
        best = max(result["rate"] for result in by_library.values())
        lines.append(f"| {model} | {m}, {k}, {n} | {times} | {best / device['rate']:.0%} of read |")
    problems = [r for r in results if "problem" in r]
    lines += ["", f"{len(results)} results, {len(problems)} of them problems:"]
    lines += sorted({r["problem"].splitlines()[0][:120] for r in problems})
    return "\n".join(lines)


def _row(case: tuple[Any, ...], found: list[dict[str, Any]], read: float) -> str:
    kind, head_size, group, batch, queries, context = case
    name = f"{kind} D{head_size} G{group} {batch}x{queries} at {context}"
    right = [r for r in found if "problem" not in r]
    if not right:
        return f"| {name} | none of {len(found)} worked | | | | |"
    best = min(right, key=lambda r: r["us"])
    today = next((r for r in right if r["is_today"]), None)
    tile = best["tile"]
    sizes = ", ".join(str(tile[x]) for x in ("keys", "rows", "num_warps", "num_stages", "waves"))
    rate = (
        f"{best['rate'] / read:.0%} of read"
        if kind == "decode"
        else f"{best['rate'] / 1e12:.0f} TFLOP/s"
    )
    today_us = "-" if today is None else f"{today['us']:.1f}"
    ratio = "-" if today is None else f"{today['us'] / best['us']:.2f}"
    return f"| {name} | {sizes} | {best['us']:.1f} | {today_us} | {ratio} | {rate} |"


if __name__ == "__main__":
    sys.exit(main())
