"""Times the experts of mixtures on a CUDA device, with each of several tiles.

    python scripts/gpu/experts.py --seconds 40 --out experts.jsonl

A line per shape, number of tokens and tile: microseconds a call of `FusedExperts`, the weights read
per second, and PyTorch's own grouped product beside it. Calls run in a CUDA graph, each with other
experts. What does not fit into the seconds is left out.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stonechat_models.backends.transformers.fused import expert_kernels as kernels
from stonechat_models.backends.transformers.fused.experts import (
    TILES,
    Activation,
    ExpertLinear,
    FusedExperts,
    Tile,
    choose_tile,
)
from stonechat_models.backends.transformers.kernel_timing import GraphTimer

SHAPES = {  # experts, experts of a token, hidden size, inner size
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "gpt-oss-20b": (32, 4, 2880, 2880),
    "mixtral-8x7b": (8, 2, 4096, 14336),
}
TOKENS = (1, 64, 8, 2048, 256)
FEW = [
    Tile(16, 32, 128, 4, 4),
    Tile(16, 32, 256, 4, 4),
    Tile(16, 64, 128, 4, 3),
    Tile(16, 64, 128, 4, 5),
    Tile(16, 64, 256, 4, 3),
    Tile(16, 128, 64, 4, 5),
    Tile(16, 128, 128, 4, 3),
    Tile(16, 64, 128, 8, 4),
    Tile(32, 64, 128, 4, 4),
]
MANY = [
    Tile(64, 128, 64, 4, 3),
    Tile(64, 128, 64, 8, 4),
    Tile(64, 256, 64, 8, 3),
    Tile(128, 128, 64, 4, 3),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 256, 64, 8, 3),
    Tile(128, 256, 64, 8, 4),
]
CALLS = 8


def random_experts(shape: tuple[int, int, int, int]) -> FusedExperts:
    experts, _, hidden, inner = shape

    def linear(rows: int, columns: int) -> ExpertLinear:
        weight = torch.empty(experts, rows, columns, device="cuda", dtype=torch.bfloat16)
        for part in weight:
            part.normal_(std=columns**-0.5)
        return ExpertLinear(nn.Parameter(weight, requires_grad=False), None, is_transposed=False)

    activation = Activation(kernels.SILU.value)
    return FusedExperts(linear(2 * inner, hidden), linear(hidden, inner), activation)


def random_calls(shape: tuple[int, int, int, int], num_tokens: int) -> list[tuple[Any, Any, Any]]:
    experts, top_k, hidden, _ = shape
    calls = []
    for _ in range(CALLS):
        values, ids = torch.randn(num_tokens, experts, device="cuda").topk(top_k)
        x = torch.randn(num_tokens, hidden, device="cuda", dtype=torch.bfloat16)
        calls.append((x, ids, values.softmax(dim=-1)))
    return calls


def grouped_mm(module: FusedExperts, x: Any, ids: Any, routing: Any) -> torch.Tensor:
    """The products of PyTorch alone, without the operators around them."""
    flat, order = ids.flatten().sort()
    counts = torch.histc(flat.int(), bins=module.num_experts, min=0, max=module.num_experts - 1)
    offsets = counts.cumsum(0, dtype=torch.int32)
    rows = x[order // ids.shape[1]]
    product = torch.nn.functional.grouped_mm(rows, module.up.weight.transpose(1, 2), offs=offsets)
    gate, up = product.chunk(2, dim=-1)
    inner = torch.nn.functional.silu(gate) * up
    return torch.nn.functional.grouped_mm(inner, module.down.weight.transpose(1, 2), offs=offsets)


def candidates(num_tokens: int, shape: tuple[int, int, int, int]) -> list[Tile]:
    """The tile that is in use, and others."""
    chosen = choose_tile(num_tokens, shape[1], shape[0], torch.bfloat16)
    return [chosen, *(FEW if chosen is TILES[16] else MANY)]


@torch.inference_mode()
def time_shape(name: str, shape: tuple[int, int, int, int], end: float, write: Any) -> None:
    module, timer = random_experts(shape), GraphTimer(torch.device("cuda"))
    size = 3 * shape[2] * shape[3]
    for num_tokens in TOKENS:
        calls = random_calls(shape, num_tokens)
        weights = size * 2 * statistics.mean(len(ids.unique()) for _, ids, _ in calls)

        def ours(tile: Tile, calls: Any = calls) -> None:
            for call in calls:
                module(*call, tile)

        def theirs(calls: Any = calls) -> None:
            for call in calls:
                grouped_mm(module, *call)

        tiles = candidates(num_tokens, shape)
        runs: list[tuple[Any, Any]] = [("grouped_mm", theirs)]
        runs += [(tile, partial(ours, tile)) for tile in tiles]
        for tile, run in runs:
            if time.monotonic() > end:
                return
            row = {"shape": name, "tokens": num_tokens, "tile": tile, "chosen": tile is tiles[0]}
            try:
                time_us = timer(run) * 1e6 / CALLS
                row |= {"us": round(time_us, 1), "GB/s": round(weights / time_us / 1e3)}
                row["TFLOP/s"] = round(2 * size * num_tokens * shape[1] / time_us / 1e6, 1)
            except Exception as error:
                row["error"] = (str(error).splitlines() or [repr(error)])[0][:120]
            write(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    end = time.monotonic() + options.seconds

    def write(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    for name, shape in SHAPES.items():
        time_shape(name, shape, end, write)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
