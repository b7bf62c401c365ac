"""Chooses at load how products of up to 64 rows are computed: both ways are timed on the device."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stonechat_models.backends.transformers.cuda.kernel_timing import (
    GraphTimer,
    Timer,
    compiled_side_by_side,
)
from stonechat_models.backends.transformers.fused.linears import use_ways, way_of
from stonechat_models.backends.transformers.fused.parity_check import agree, random_rows
from stonechat_models.backends.transformers.fused.row_products.few_rows import (
    ROW_COUNTS,
    FewRowsTile,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    SomeRowsTile,
)
from stonechat_models.backends.transformers.fused.step_products import Product, product_groups
from stonechat_models.checkpoint.cache import Progress

logger = logging.getLogger(__name__)

TILES = (
    FewRowsTile(),
    FewRowsTile(rows=4),
    FewRowsTile(num_warps=8),
    FewRowsTile(num_warps=2),
    FewRowsTile(num_lines=64),
    FewRowsTile(rows=4, num_lines=64),
)
"""The ways that `few_rows_product` is tried in."""
SOME_TILES = (
    SomeRowsTile(),
    SomeRowsTile(num_lines=16),
    SomeRowsTile(outputs=32, inputs=128, num_stages=4, num_lines=16),
    SomeRowsTile(inputs=128, num_stages=4, waves=1, num_lines=16),
)
"""The ways that `some_rows_product` is tried in."""
TIMED_COUNTS = {16: (8, 16), 64: (32, 64)}
"""Numbers of rows that `some_rows_product` is timed with, and those that it is then used for."""
TIMED_BYTES = 1 << 30
"""Weights that are timed of each kind and shape: many times what a device's cache holds."""

Tile = FewRowsTile | SomeRows


@dataclass(frozen=True, slots=True)
class ProductTiming:
    """Times of one product in seconds; `own` is that of the fastest tile, if any is right."""

    kind: str
    outputs: int
    inputs: int
    num_rows: int
    torch: float
    own: float
    tile: Tile | None

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.num_rows} in {self.own * 1e6:.1f} us, not {self.torch * 1e6:.1f}"
        )


@torch.inference_mode()
def choose_products(
    module: nn.Module,
    progress: Progress,
    tiles: Sequence[FewRowsTile] | None = None,
    some_tiles: Sequence[SomeRowsTile] | None = None,
) -> list[ProductTiming]:
    """Let the products of a fused `module` on CUDA use the faster kernel. Returns the times.

    The choice is made for each shape and number of rows. Products stay as they are if the kernel
    cannot run here, or gives other numbers. The tiles are `TILES` and `SOME_TILES` by default.
    """
    tiles = TILES if tiles is None else tiles
    some_tiles = SOME_TILES if some_tiles is None else some_tiles
    device = next(module.parameters()).device
    groups = product_groups(module)
    if not groups or not GraphTimer.works_on(device):
        return []
    try:
        with torch.cuda.device(device):
            ways = [SomeRows.on(device, tile) for tile in some_tiles]
            compile_ahead(groups, tiles)
            compile_ahead(groups, ways, TIMED_COUNTS)
            timings = choose_faster(groups, GraphTimer(device), tiles, ways)
            _compile_chosen(groups)
    except Exception as error:  # after any error, the products stay as they are
        logger.warning("products of a few rows cannot be timed", exc_info=error)
        for group in groups:
            _use(group, {})
        progress(f"products of a few rows stay with PyTorch: {error}")
        return []
    chosen = "; ".join(str(timing) for timing in timings if timing.own < timing.torch)
    progress(f"own kernel for products of a few rows: {chosen or 'none is faster'}")
    return timings


def choose_faster(
    groups: Iterable[Sequence[Product]],
    timer: Timer,
    tiles: Sequence[FewRowsTile],
    ways: Sequence[SomeRows] = (),
) -> list[ProductTiming]:
    """Choose for each group of products of one kind and shape, in all layers, by `timer`.

    `ways`: how more rows are multiplied, in half precision.
    """
    timings = []
    for group in groups:
        weight = group[0].linear.weight
        assert isinstance(weight, torch.Tensor)
        trials: list[tuple[int, tuple[int, ...], Sequence[Tile]]]
        trials = [(num_rows, (num_rows,), tiles) for num_rows in ROW_COUNTS]
        if ways and weight.dtype.itemsize == 2:
            trials += [(num_rows, used_for, ways) for num_rows, used_for in TIMED_COUNTS.items()]
        chosen: dict[int, Tile] = {}
        for num_rows, used_for, candidates in trials:
            timing = _time(group, num_rows, timer, candidates)
            timings.append(timing)
            if timing.tile is not None and timing.own < timing.torch:
                chosen |= dict.fromkeys(used_for, timing.tile)
        _use(group, chosen)
    return timings


def compile_ahead(
    groups: Iterable[Sequence[Product]],
    tiles: Sequence[Tile],
    row_counts: Iterable[int] = ROW_COUNTS,
) -> None:
    """Compile all kernels side by side."""
    with compiled_side_by_side():
        for group in groups:
            for num_rows in row_counts:
                x, scratch = _random_input(group[0], num_rows)
                for tile in tiles:
                    group[0].compile(x, scratch, tile)


def _compile_chosen(groups: Iterable[Sequence[Product]]) -> None:
    """Compile side by side what was chosen for numbers of rows that were not timed."""
    with compiled_side_by_side():
        for group in groups:
            for num_rows in {n for counts in TIMED_COUNTS.values() for n in counts}:
                way = way_of(group[0].linear, num_rows)
                if isinstance(way, SomeRows):
                    group[0].compile(*_random_input(group[0], num_rows), way)


def _random_input(product: Product, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and the scratch memory of `Product.run`."""
    weight = product.linear.weight
    assert isinstance(weight, torch.Tensor)
    x = random_rows((num_rows, weight.shape[1]), weight)
    return x, random_rows((num_rows, weight.shape[0]), weight)


def _time(
    group: Sequence[Product], num_rows: int, timer: Timer, tiles: Sequence[Tile]
) -> ProductTiming:
    """Time products in turn, with `TIMED_BYTES` of weights, so that none is in the cache."""
    weight = group[0].linear.weight
    assert isinstance(weight, torch.Tensor)
    timed = group[: -(-TIMED_BYTES // weight.nbytes)]
    x, scratch = _random_input(group[0], num_rows)
    sums = scratch.clone()

    def run() -> torch.Tensor:
        return [product.run(x, sums) for product in timed][-1]

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        changed = scratch.clone()
        return group[0].run(x, changed), changed

    _use(group, {})
    expected = outputs()
    torch_seconds = timer(run)
    best: Tile | None = None
    own_seconds = float("inf")
    for tile in tiles:
        _use(group, {num_rows: tile})
        try:
            if not all(map(agree, expected, outputs())):
                logger.warning("%s for %s gives other numbers", tile, group[0].kind)
                continue
        except Exception as error:  # the compiler's, or too much shared memory
            logger.warning("%s for %s cannot be used", tile, group[0].kind, exc_info=error)
            continue
        seconds = timer(run)
        logger.info("%s of %d rows in %s: %.2f us", group[0].kind, num_rows, tile, seconds * 1e6)
        if seconds < own_seconds:
            best, own_seconds = tile, seconds
    count = len(timed)
    return ProductTiming(
        group[0].kind,
        weight.shape[0],
        weight.shape[1],
        num_rows,
        torch_seconds / count,
        own_seconds / count,
        best,
    )


def _use(group: Sequence[Product], tiles: Mapping[int, Tile]) -> None:
    """Let all products of a group use these kernels, by number of rows, and no others."""
    for product in group:
        use_ways(product.linear, tiles)
