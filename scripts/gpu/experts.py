"""Times the experts of mixtures on a CUDA device, with each of several tiles.

    python scripts/gpu/experts.py --seconds 40 --out experts.jsonl

A line per shape, number of tokens and tile: microseconds a call of `FusedExperts`, the weights read
per second, and PyTorch's own grouped product beside it. Calls run in a CUDA graph, each with other
experts. What does not fit into the seconds is left out. `--dry-run` runs a tiny shape in Triton's
interpreter.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:  # Triton must not be imported before `main` has chosen its interpreter
    from stonechat_models.backends.transformers.fused.moe.experts import FusedExperts

Shape = tuple[int, int, int, int]
SHAPES = {  # experts, experts of a token, hidden size, inner size
    "qwen3-30b-a3b": (128, 8, 2048, 768),
    "gpt-oss-20b": (32, 4, 2880, 2880),
    "mixtral-8x7b": (8, 2, 4096, 14336),
}
TOKENS: tuple[int, ...] = (1, 64, 8, 2048, 256)
FEW = [  # pairs, columns, inner numbers, warps, stages
    (16, 32, 128, 4, 4),
    (16, 32, 256, 4, 4),
    (16, 64, 128, 4, 3),
    (16, 64, 128, 4, 5),
    (16, 64, 256, 4, 3),
    (16, 128, 64, 4, 5),
    (16, 128, 128, 4, 3),
    (16, 64, 128, 8, 4),
    (32, 64, 128, 4, 4),
]
MANY = [
    (64, 128, 64, 4, 3),
    (64, 128, 64, 8, 4),
    (64, 256, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (128, 128, 64, 8, 4),
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
]
CALLS = 8


def random_experts(shape: Shape, device: torch.device) -> "FusedExperts":
    from stonechat_models.backends.transformers.fused.moe import expert_kernels as kernels
    from stonechat_models.backends.transformers.fused.moe.experts import (
        Activation,
        ExpertLinear,
        FusedExperts,
    )

    experts, _, hidden, inner = shape

    def linear(rows: int, columns: int) -> ExpertLinear:
        weight = torch.empty(experts, rows, columns, device=device, dtype=torch.bfloat16)
        for part in weight:
            part.normal_(std=columns**-0.5)
        return ExpertLinear(nn.Parameter(weight, requires_grad=False), None, is_transposed=False)

    activation = Activation(kernels.SILU.value)
    return FusedExperts(linear(2 * inner, hidden), linear(hidden, inner), activation)


def random_calls(shape: Shape, num_tokens: int, device: torch.device) -> list[tuple[Any, Any, Any]]:
    experts, top_k, hidden, _ = shape
    calls = []
    for _ in range(CALLS):
        values, ids = torch.randn(num_tokens, experts, device=device).topk(top_k)
        x = torch.randn(num_tokens, hidden, device=device, dtype=torch.bfloat16)
        calls.append((x, ids, values.softmax(dim=-1)))
    return calls


def grouped_mm(module: "FusedExperts", x: Any, ids: Any, routing: Any) -> torch.Tensor:
    """The products of PyTorch alone, without the operators around them."""
    flat, order = ids.flatten().sort()
    counts = torch.histc(flat.float(), bins=module.num_experts, min=0, max=module.num_experts - 1)
    offsets = counts.cumsum(0, dtype=torch.int32)
    rows = x[order // ids.shape[1]]
    product = torch.nn.functional.grouped_mm(rows, module.up.weight.transpose(1, 2), offs=offsets)
    gate, up = product.chunk(2, dim=-1)
    inner = torch.nn.functional.silu(gate) * up
    return torch.nn.functional.grouped_mm(inner, module.down.weight.transpose(1, 2), offs=offsets)


def candidates(num_tokens: int, shape: Shape) -> list[Any]:
    """The tile that is in use, and others."""
    from stonechat_models.backends.transformers.fused.moe.experts import TILES, Tile, choose_tile

    chosen = choose_tile(num_tokens, shape[1], shape[0], torch.bfloat16)
    others = FEW if chosen is TILES[16] else MANY
    return [chosen, *(Tile(*tile) for tile in others)]


@torch.inference_mode()
def time_shape(
    name: str,
    shape: Shape,
    tokens: tuple[int, ...],
    device: torch.device,
    timer: Callable[[Any], float],
    end: float,
    write: Any,
) -> None:
    module = random_experts(shape, device)
    size = 3 * shape[2] * shape[3]
    for num_tokens in tokens:
        calls = random_calls(shape, num_tokens, device)
        weights = size * 2 * statistics.mean(len(ids.unique()) for _, ids, _ in calls)

        def ours(tile: Any, calls: Any = calls) -> None:
            for call in calls:
                module(*call, tile)

        def theirs(calls: Any = calls) -> None:
            for call in calls:
                grouped_mm(module, *call)

        tiles = candidates(num_tokens, shape)[: None if device.type == "cuda" else 2]
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


def untimed(run: Callable[[], object]) -> float:
    """Stands in for the timer of a device."""
    run()
    return 1e-3


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(words)
    end = time.monotonic() + options.seconds
    shapes, tokens, device = SHAPES, TOKENS, torch.device("cuda:0")
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        shapes, tokens, device = {"tiny": (4, 2, 32, 16)}, (1, 3), torch.device("cpu")
    timer: Callable[[Any], float] = untimed
    if device.type == "cuda":
        from stonechat_models.backends.transformers.cuda.kernel_timing import GraphTimer

        timer = GraphTimer(device)
    num_times = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal num_times
        num_times += "us" in row
        print(json.dumps(row), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    for name, shape in shapes.items():
        time_shape(name, shape, tokens, device, timer, end, write)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0 if num_times else 1


if __name__ == "__main__":
    sys.exit(main())
