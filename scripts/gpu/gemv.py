"""Time matrix products of a few rows: our kernel in several tiles, against PyTorch's.

    python scripts/gpu/gemv.py --seconds 60 --out gemv.jsonl

Each line is a JSON object: microseconds, and the gigabytes of weights read per second. The first
ones are of whole layers without their attention, with and without programmatic dependent launch.
Then each product of a layer is timed with what surrounds it. A timing is that of a CUDA graph over
several layers, whose weights exceed the device's cache. `--dry-run` runs one tiny case on the CPU.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

SHAPES = {  # hidden size, intermediate size, query heads, KV heads, head size, layers
    "8B": (4096, 14336, 32, 8, 128, 6),
    "1B": (2048, 8192, 32, 8, 64, 16),
}
TINY = (32, 64, 2, 1, 16, 1)
TILES = ((8, 4), (4, 4), (8, 8), (8, 2), (16, 4), (16, 2), (4, 8), (16, 8), (4, 2))
"""Rows of the matrix and warps of a program."""


def layers_of(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> nn.ModuleList:
    """Fused decoder layers with random weights."""
    from stonechat_models.backends.transformers.attention.backend import AttentionSpec
    from stonechat_models.backends.transformers.fused.attention import FusedAttention
    from stonechat_models.backends.transformers.fused.layer import FusedDecoderLayer
    from stonechat_models.backends.transformers.fused.modules import FusedRMSNorm, MergedMLP

    hidden, intermediate, heads, kv_heads, size, num_layers = shape

    def linear(num_in: int, num_out: int) -> nn.Linear:
        made = nn.Linear(num_in, num_out, bias=False, device=device, dtype=dtype)
        nn.init.normal_(made.weight, std=num_in**-0.5)
        return made.requires_grad_(False)

    def norm() -> FusedRMSNorm:
        weight = torch.ones(hidden, device=device, dtype=dtype)
        return FusedRMSNorm(nn.Parameter(weight, requires_grad=False), 1e-5, 0.0, True)

    def layer(i: int) -> FusedDecoderLayer:
        attention = FusedAttention(
            linear(hidden, (heads + 2 * kv_heads) * size),
            linear(heads * size, hidden),
            layer=i,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_size=size,
            rotary_size=size,
            norms=None,
            spec=AttentionSpec(scaling=size**-0.5),
        )
        mlp = MergedMLP(linear(hidden, 2 * intermediate), linear(intermediate, hidden))
        return FusedDecoderLayer(norm(), attention, norm(), mlp)

    return nn.ModuleList(layer(i) for i in range(num_layers))


def layer_steps(layers: nn.ModuleList, num_rows: int) -> Callable[[], torch.Tensor]:
    """A step through all layers, with the queries in place of the attention's output."""
    from stonechat_models.backends.transformers.fused.products import add_product

    first: Any = cast(Any, layers[0]).self_attn
    weight: Any = first.qkv_proj.weight
    residual = torch.randn(num_rows, weight.shape[1]).to(weight)
    slots = torch.arange(num_rows, device=weight.device)
    keys = residual.new_empty(num_rows, first.num_kv_heads, first.head_dim)
    values = torch.empty_like(keys)
    angles = torch.rand(1, num_rows, first.head_dim).to(weight)

    def run() -> torch.Tensor:
        for layer in cast("list[Any]", layers):
            attention = layer.self_attn
            norm = layer.input_layernorm
            queries = attention.project(residual, norm, (angles, angles), slots, keys, values)
            add_product(residual, attention.o_proj, queries.view(num_rows, -1))
            layer.mlp.add_to(residual, residual, layer.post_attention_layernorm)
        return residual

    return run


class Sweep:
    """Times runs until the time is over, and writes each result at once."""

    def __init__(self, device: torch.device, deadline: float, out: Path) -> None:
        from stonechat_models.backends.transformers.cuda.kernel_timing import GraphTimer

        self.device, self.deadline, self.out = device, deadline, out
        self.timer: Callable[[Any], float] = lambda run: (run(), 1e-3)[1]
        if device.type == "cuda":
            self.timer = GraphTimer(device)
        self.num_results = 0

    def time(
        self, run: Callable[[], torch.Tensor], num_bytes: int, count: int, **case: Any
    ) -> None:
        if time.monotonic() > self.deadline:
            return
        try:
            seconds = self.timer(run)
            case |= {
                "us": round(seconds / count * 1e6, 2),
                "gb_s": round(num_bytes / seconds / 1e9),
            }
            self.num_results += 1
        except Exception as error:  # the other cases go on
            case["error"] = f"{type(error).__name__}: {error}"[:300]
        line = json.dumps(case)
        print(line, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def compile_all(layers: nn.ModuleList, num_rows: int, device: torch.device) -> None:
    """Compile the kernels of all tiles side by side. They are the same for all shapes."""
    from stonechat_models.backends.transformers.fused.product_choice import compile_ahead
    from stonechat_models.backends.transformers.fused.row_products.few_rows import FewRowsTile
    from stonechat_models.backends.transformers.fused.step_products import product_groups

    if device.type == "cuda":
        tiles = [FewRowsTile(*tile) for tile in TILES]
        compile_ahead(product_groups(layers), tiles, (num_rows,))


def set_early(is_on: bool) -> None:
    """Switch programmatic dependent launch."""
    from stonechat_models.hardware.dependent_launch import VARIABLE, launch_settings

    os.environ[VARIABLE] = str(int(is_on))
    launch_settings.cache_clear()


def use(layers: nn.Module, tiles: dict[int, Any]) -> None:
    from stonechat_models.backends.transformers.fused.linears import use_ways

    for module in layers.modules():
        if isinstance(module, nn.Linear):
            use_ways(module, tiles)


def time_layers(sweep: Sweep, name: str, layers: nn.ModuleList, num_rows: int) -> None:
    from stonechat_models.backends.transformers.fused.row_products.few_rows import FewRowsTile

    num_bytes = sum(p.nbytes for part, p in layers.named_parameters() if "head" not in part)
    for is_early in (True, False):
        set_early(is_early)
        for tile in (None, *(FewRowsTile(*tile) for tile in TILES[:4])):
            use(layers, {} if tile is None else {num_rows: tile})
            run = layer_steps(layers, num_rows)
            case = {"shape": name, "kind": "layer", "rows": num_rows, "pdl": is_early}
            sweep.time(run, num_bytes, len(layers), **case, tile=str(tile))
    set_early(True)


def head_of(layers: nn.ModuleList, vocab_size: int) -> Any:
    """An output head with the norm before it. It becomes a part of `layers`."""
    from stonechat_models.backends.transformers.fused.step_products import Product

    norm: Any = layers[0].input_layernorm
    head: Any = layers[0]._modules.get("head")
    if head is None:
        weight = norm.weight
        head = nn.Linear(len(weight), vocab_size, False, weight.device, weight.dtype)
        nn.init.normal_(head.weight, std=len(weight) ** -0.5)
        layers[0].head = head.requires_grad_(False)
    return Product("head", head, norm)


def time_products(
    sweep: Sweep, name: str, layers: nn.ModuleList, num_rows: int, vocab_size: int
) -> None:
    from stonechat_models.backends.transformers.fused.row_products.few_rows import FewRowsTile
    from stonechat_models.backends.transformers.fused.step_products import product_groups

    for group in [*product_groups(layers), [head_of(layers, vocab_size)]]:
        weight: Any = group[0].linear.weight
        x = torch.randn(num_rows, weight.shape[1]).to(weight)
        residual = torch.randn(num_rows, weight.shape[0]).to(weight)

        def run(group: Any = group, x: Any = x, residual: Any = residual) -> Any:
            return [product.run(x, residual) for product in group][-1]

        for tile in (None, *(FewRowsTile(*tile) for tile in TILES)):
            use(layers, {} if tile is None else {num_rows: tile})
            case = {"shape": name, "kind": group[0].kind, "n": weight.shape[0]}
            case |= {"k": weight.shape[1], "rows": num_rows, "tile": str(tile)}
            sweep.time(run, weight.nbytes * len(group), len(group), **case)
    use(layers, {})


@torch.inference_mode()
def main(words: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args(words)
    shapes: dict[str, tuple[int, ...]] = dict(SHAPES)
    device, dtype = torch.device("cuda:0"), torch.bfloat16
    counts: tuple[int, ...] = (1, 4, 2, 8)
    vocab_size = 128256
    if arguments.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
        shapes, counts, vocab_size = {"tiny": TINY}, (1,), 100
        device, dtype = torch.device("cpu"), torch.float32
    arguments.out.write_text("")
    sweep = Sweep(device, started + arguments.seconds, arguments.out)
    models = {name: layers_of(shape, device, dtype) for name, shape in shapes.items()}
    for num_rows in counts:
        compile_all(next(iter(models.values())), num_rows, device)
        for name, layers in models.items():
            time_layers(sweep, name, layers, num_rows)
        for name, layers in models.items():
            time_products(sweep, name, layers, num_rows, vocab_size)
    return 0 if sweep.num_results else 1


if __name__ == "__main__":
    sys.exit(main())
