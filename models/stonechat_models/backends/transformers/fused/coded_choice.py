"""Chooses at load how 5 to 64 rows are multiplied by weights that stay as stored."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stonechat_models.backends.quantization.codes.code_products import MAX_ROWS
from stonechat_models.backends.quantization.codes.coded_linear import CodedLinear, Way
from stonechat_models.backends.quantization.codes.codes import Codes
from stonechat_models.backends.transformers.cuda.kernel_timing import (
    GraphTimer,
    Timer,
    compiled_side_by_side,
)
from stonechat_models.backends.transformers.fused.parity_check import agree, random_rows
from stonechat_models.backends.transformers.fused.product_choice import (
    TIMED_BYTES,
    ProductTiming,
)
from stonechat_models.backends.transformers.fused.row_products.coded_some_rows import (
    CodedRows,
    can_multiply,
    with_wide_scales,
)
from stonechat_models.backends.transformers.fused.row_products.some_rows import (
    SomeRows,
    SomeRowsTile,
)
from stonechat_models.checkpoint.cache import Progress

logger = logging.getLogger(__name__)

LOW_TILE = SomeRowsTile(64, 128, num_warps=4, num_stages=4, waves=4)
CODED_TILES: dict[int, tuple[SomeRowsTile, ...]] = {
    16: (LOW_TILE, SomeRowsTile(128, 128, num_warps=4, num_stages=3, waves=2, num_lines=8)),
    64: (LOW_TILE, SomeRowsTile(128, 128, num_warps=8, num_stages=3, waves=2, num_lines=8)),
}
"""The tiles that products are tried with, by the number of rows that they are timed with."""
USED_FOR = {16: range(MAX_ROWS + 1, 17), 64: range(17, 65)}
"""The numbers of rows that a choice is for, by the one that was timed."""
COMPILED_ROWS = (16, 32, 64)
"""With these numbers of rows, each kernel of `USED_FOR` runs at least once."""


@dataclass(frozen=True, slots=True, eq=False)
class CodedGroup:
    """Layers of one shape and format, and the weights of each as `CodedRows` multiplies them."""

    layers: Sequence[CodedLinear]
    parts: Sequence[list[Codes]]

    @property
    def kind(self) -> str:
        names = dict.fromkeys(part.format.name for part in self.layers[0].parts)
        return f"{' and '.join(names)} codes"

    def use(self, ways: dict[int, Way]) -> None:
        for layer, parts in zip(self.layers, self.parts, strict=True):
            layer.use_ways(ways, parts if ways else [])


@torch.inference_mode()
def choose_coded_products(
    module: nn.Module, progress: Progress, tiles: dict[int, tuple[SomeRowsTile, ...]] | None = None
) -> list[ProductTiming]:
    """Let the layers of `module` with codes use the faster way on CUDA. Returns the times.

    Layers stay as they are if the kernel cannot run here, or gives other numbers. The tiles are
    `CODED_TILES` by default.
    """
    tiles = CODED_TILES if tiles is None else tiles
    groups: list[CodedGroup] = []
    try:
        groups = coded_groups(module)
        if not groups or not GraphTimer.works_on(groups[0].layers[0].weight.device):
            return []
        device = groups[0].layers[0].weight.device
        with torch.cuda.device(device):
            ways = {
                num_rows: [CodedRows(SomeRows.on(device, tile)) for tile in some]
                for num_rows, some in tiles.items()
            }
            compile_ahead(groups, ways)
            timings = choose_faster_codes(groups, GraphTimer(device), ways)
            _compile_chosen(groups)
    except Exception as error:  # after any error, the products stay as they are
        logger.warning("products with codes cannot be timed", exc_info=error)
        for group in groups:
            group.use({})
        progress(f"5 and more rows are multiplied by dequantised weights: {error}")
        return []
    chosen = "; ".join(str(timing) for timing in timings if timing.own < timing.torch)
    progress(f"own kernel for 5 to 64 rows: {chosen or 'none is faster'}")
    return timings


def coded_groups(module: nn.Module) -> list[CodedGroup]:
    """The layers in half precision whose codes the kernel has: those of one kind together."""
    groups: dict[object, list[CodedLinear]] = defaultdict(list)
    for layer in module.modules():
        if not isinstance(layer, CodedLinear) or layer.weight.dtype.itemsize != 2:
            continue
        if all(map(can_multiply, layer.parts)):
            kinds = tuple((p.format, p.shape, p.group, p.scales.dtype) for p in layer.parts)
            groups[kinds, layer.bias is None, layer.order is None].append(layer)
    return [
        CodedGroup(layers, [list(map(with_wide_scales, layer.parts)) for layer in layers])
        for layers in groups.values()
    ]


def choose_faster_codes(
    groups: Iterable[CodedGroup], timer: Timer, ways: dict[int, list[CodedRows]]
) -> list[ProductTiming]:
    """Choose for each group by `timer`. `ways`: by the number of rows that is timed."""
    timings = []
    for group in groups:
        chosen: dict[int, Way] = {}
        for num_rows, candidates in ways.items():
            timing, way = _time(group, num_rows, timer, candidates)
            timings.append(timing)
            if way is not None and timing.own < timing.torch:
                chosen |= dict.fromkeys(USED_FOR[num_rows], way)
        group.use(chosen)
    return timings


def compile_ahead(groups: Iterable[CodedGroup], ways: dict[int, list[CodedRows]]) -> None:
    """Compile all kernels side by side."""
    with compiled_side_by_side():
        for group in groups:
            for num_rows, candidates in ways.items():
                for way in candidates:
                    group.use({num_rows: way})
                    group.layers[0].compile_product(num_rows)
            group.use({})


def _compile_chosen(groups: Iterable[CodedGroup]) -> None:
    """Compile side by side what was chosen for numbers of rows that were not timed."""
    with compiled_side_by_side():
        for group in groups:
            for num_rows in COMPILED_ROWS:
                group.layers[0].compile_product(num_rows)


def _time(
    group: CodedGroup, num_rows: int, timer: Timer, ways: Sequence[CodedRows]
) -> tuple[ProductTiming, Way | None]:
    """Time layers in turn, with `TIMED_BYTES` of codes, so that none is in the cache.

    Returns the times, and the fastest way if any is right.
    """
    first = group.layers[0]
    timed = group.layers[: -(-TIMED_BYTES // first.num_bytes)]
    x = random_rows((num_rows, first.in_features), first.weight)

    def run() -> torch.Tensor:
        return [layer.rows(x) for layer in timed][-1]

    group.use({})
    expected = first.rows(x)
    torch_seconds = timer(run)
    best: CodedRows | None = None
    own_seconds = float("inf")
    for way in ways:
        group.use({num_rows: way})
        try:
            if not agree(expected, first.rows(x)):
                logger.warning("%s for %s gives other numbers", way.how.tile, group.kind)
                continue
        except Exception as error:  # the compiler's, or too much shared memory
            logger.warning("%s for %s cannot be used", way.how.tile, group.kind, exc_info=error)
            continue
        seconds = timer(run)
        logger.info("%s of %d rows in %s: %.2f us", group.kind, num_rows, way, seconds * 1e6)
        if seconds < own_seconds:
            best, own_seconds = way, seconds
    timing = ProductTiming(
        group.kind,
        first.out_features,
        first.in_features,
        num_rows,
        torch_seconds / len(timed),
        own_seconds / len(timed),
        None if best is None else best.how,
    )
    return timing, best
