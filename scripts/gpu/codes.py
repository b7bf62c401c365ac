"""Time products with quantised weights that stay as stored, in several tiles and dequantised first.

    python scripts/gpu/codes.py --seconds 40 --out codes.jsonl

Each line is a JSON object: microseconds, and the gigabytes of codes read per second. A timing is
that of a CUDA graph over several layers, whose codes exceed the device's cache. Kernels are
compiled ahead by worker processes. `--dry-run` runs one tiny case on the CPU.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from compile_ahead import only_compile

sys.path.append(str(Path(__file__).resolve().parents[2]))  # for `tests`

CACHE_BYTES = 160 << 20
"""Codes of so many bytes are read in turn."""
PRODUCTS = (  # type, outputs, inputs: an 8B model's
    ("Q4_K", 28672, 4096),
    ("Q4_K", 4096, 14336),
    ("Q6_K", 4096, 14336),
    ("Q4_K", 6144, 4096),
    ("Q4_K", 4096, 4096),
    ("Q6_K", 128256, 4096),
    ("Q8_0", 28672, 4096),
)
ROWS_TILES = {  # rows of x: rows of the weight, units and warps of a program
    1: ((16, 64, 2), (8, 64, 2), (8, 32, 1), (16, 32, 1), (4, 64, 2), (8, 128, 4)),
    2: ((8, 64, 2), (4, 64, 2), (8, 32, 1)),
    4: ((8, 64, 2), (4, 64, 2), (8, 32, 1)),
}
SOME_ROWS_TILES = {  # rows of x: outputs, inputs, warps, stages and waves of a program
    (8, 64): (
        (64, 128, 4, 4, 4),
        (128, 128, 8, 3, 2),
        (128, 128, 4, 3, 2),
        (64, 128, 4, 3, 2),
        (64, 256, 4, 3, 2),
    ),
}
NUM_MULTIPROCESSORS = 132
"""Of a Hopper card."""
DEQUANTISED = (1, 2, 4, 8, 64)
"""Rows of x for which the weight is dequantised first."""


def cases(rows: tuple[int, ...]) -> list[tuple[Any, ...]]:
    """(rows of x, tile or None: dequantised, product), the first ones of each first."""
    tiles: list[tuple[int, tuple[int, ...], int]]
    tiles = [(m, tile, i) for m, table in ROWS_TILES.items() for i, tile in enumerate(table)]
    tiles += [
        (m, tile, i)
        for counts, table in SOME_ROWS_TILES.items()
        for m in counts
        for i, tile in enumerate(table)
    ]
    found = [
        (rank + place + 3 * (m > 1), m, tile, product)
        for m, tile, rank in [*tiles, *((m, None, 0) for m in DEQUANTISED)]
        for place, product in enumerate(PRODUCTS)
        if m in rows
    ]
    return [case[1:] for case in sorted(found, key=lambda case: case[0])]


def use(m: int, tile: tuple[int, ...] | None, device: torch.device) -> Any:
    """Make `code_products` choose this tile, or dequantise. Returns a way, if it is for some rows.

    Where the device is absent, kernels are compiled for one with `NUM_MULTIPROCESSORS`.
    """
    from stonechat_models.backends.quantization.codes import code_products
    from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import CodedRows
    from stonechat_models.backends.transformers.fused.row_products.some_rows import (
        SomeRows,
        SomeRowsTile,
    )

    if tile is not None and m > max(ROWS_TILES):
        how = SomeRows.on(device, SomeRowsTile(*tile))
        if device.type == "meta":
            how = SomeRows(how.tile, NUM_MULTIPROCESSORS, how.counters)
        return CodedRows(how)
    code_products.MAX_ROWS = 0 if tile is None else m
    if tile is not None:
        chosen = code_products.CodeTile(m, *tile)
        code_products.rows_tile = lambda *_: chosen
    return None


def layers_of(product: tuple[str, int, int], device: torch.device, num_bytes: int) -> list[Any]:
    from stonechat_models.backends.quantization.scratch import Scratch
    from tests.models.random_codes import random_coded_linear

    scratch = Scratch(device, torch.bfloat16)
    type_name, n, k = product
    first = random_coded_linear(n, k, type_name, scratch, torch.bfloat16, device)
    count = max(1, min(16, -(-num_bytes // first.num_bytes)))
    rest = range(1, count)
    return [first] + [
        random_coded_linear(n, k, type_name, scratch, torch.bfloat16, device, seed=i) for i in rest
    ]


def compile_case(case: tuple[Any, ...]) -> None:
    """In a worker: tensors have no memory."""
    from stonechat_models.backends.quantization.codes import code_products
    from stonechat_models.backends.quantization.scratch import Scratch
    from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
        with_wide_scales,
    )
    from tests.models.random_codes import random_codes

    m, tile, (type_name, n, k) = case
    way = use(m, tile, torch.device("meta"))
    small = random_codes(type_name, 16, k, torch.device("cpu"))
    x = torch.empty(m, k, dtype=torch.bfloat16, device="meta")
    output = torch.empty(m, n, dtype=torch.bfloat16, device="meta")
    planes: dict[str, Any] = {
        name: None if plane is None else plane.to("meta")
        for name in ("low", "high", "scales", "extra", "table")
        for plane in (getattr(small, name),)
    }
    codes = type(small)(small.format, group=small.group, **planes)
    if way is not None:
        way(output, x, with_wide_scales(codes), None, compiles_only=True)
        return
    scratch = Scratch(torch.device("meta"), torch.bfloat16)
    scratch.reserve(n * k)
    code_products.multiply_into(output, x, codes, None, scratch, compiles_only=True)


def time_case(case: tuple[Any, ...], layers: list[Any], timer: Any) -> dict[str, Any]:
    m, tile, (type_name, n, k) = case
    from stonechat_models.backends.quantization.codes.code_products import dequantise_into
    from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
        with_wide_scales,
    )

    x = torch.randn(m, k).bfloat16().to(layers[0].weight.device)
    way = use(m, tile, x.device)
    for layer in layers:
        parts = [] if way is None else list(map(with_wide_scales, layer.parts))
        layer.use_ways({} if way is None else {m: way}, parts)
    weight = torch.empty(64, k, device=x.device)
    dequantise_into(weight, layers[0].parts[0])
    expected = x.float() @ weight.T
    actual = layers[0](x)[:, : len(weight)].float()
    error = float((actual - expected).norm() / expected.norm())
    seconds = timer(lambda: [layer(x) for layer in layers][-1]) / len(layers)
    return {
        "type": type_name,
        "shape": [n, k],
        "rows": m,
        "tile": tile or "dequantised",
        "us": round(seconds * 1e6, 2),
        "gb_s": round(layers[0].num_bytes / seconds / 1e9),
        "error": round(error, 5),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--out", type=Path, default=Path("codes.jsonl"))
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 64])
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    timer: Any = lambda run: (run(), 1e-3)[1]  # noqa: E731
    device, todo = torch.device("cpu"), cases(tuple(options.rows))
    num_bytes = 0 if options.dry_run else CACHE_BYTES
    if options.dry_run:
        tiles = ((1, (16, 1, 1)), (8, (32, 128, 4, 2, 1)), (16, None))
        todo = [(m, tile, ("Q4_K", 64, 256)) for m, tile in tiles]
    else:
        from stonechat_models.backends.transformers.cuda.kernel_timing import GraphTimer
        from stonechat_models.hardware.dependent_launch import launches_early

        device = torch.device("cuda", 0)
        timer = GraphTimer(device)
        capability = torch.cuda.get_device_capability(device)
        context = get_context("spawn")
        target = (capability, launches_early(device))
        pool = ProcessPoolExecutor(options.workers, context, only_compile, target)
        compiled = [pool.submit(compile_case, case) for case in todo]
    made: dict[Any, list[Any]] = {}
    for i, case in enumerate(todo):
        if time.monotonic() > deadline:
            break
        try:
            if not options.dry_run:
                compiled[i].result(timeout=max(1.0, deadline - time.monotonic()))
            if case[-1] not in made:
                made[case[-1]] = layers_of(case[-1], device, num_bytes)
            result = time_case(case, made[case[-1]], timer)
        except Exception as error:  # the other cases go on
            result = {"case": str(case), "error": f"{type(error).__name__}: {error}"[:300]}
        line = json.dumps(result)
        print(line, flush=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    if not options.dry_run:
        pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
