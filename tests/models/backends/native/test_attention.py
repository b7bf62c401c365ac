"""The compiled attention equals an oracle in float64, and a row has the same bits in any step."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stonechat_models.backends.native.bindings import KvFormat, Library
from tests.models.backends.native.attention_helpers import Attention, Row, Shape, Tokens
from tests.models.backends.native.native_helpers import BUILDS, cpu_flags, library_of
from tests.nightly import nightly

FORMATS = list(KvFormat)
BOUNDS = {KvFormat.BFLOAT16: 0.008, KvFormat.INT8: 0.012}
"""Of the root mean square of the error, over that of the outputs."""

SHAPES = {
    "groups": Shape(),
    "one head": Shape(heads=1, kv_heads=1, dim=128),
    "narrow": Shape(heads=8, kv_heads=1, dim=32),
    "wide, window": Shape(heads=4, kv_heads=2, dim=256, window=270),
    "small window, cap": Shape(dim=96, window=21, cap=3.0),
    "gate": Shape(heads=4, kv_heads=4, gated=True),
    "large group": Shape(heads=32, kv_heads=1, window=300),
}


AVX512 = ["icelake-client"] if "avx512_vnni" in cpu_flags() else []
BFLOAT16 = ["cooperlake"] if "avx512_bf16" in cpu_flags() else []
"""Without matrix registers, which `native` uses if the processor has them."""


@pytest.fixture(params=[*BUILDS, *nightly(*AVX512, *BFLOAT16)], scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return library_of(request.param)


def shuffled(num_blocks: int, seed: int = 0) -> list[int]:
    """Blocks that do not lie in order."""
    return np.random.default_rng(seed).permutation(num_blocks).tolist()


def rows_of(i: int, positions: range) -> list[Row]:
    return [(i, p) for p in positions]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_equals_the_oracle(library: Library, name: str, kv_format: KvFormat) -> None:
    """In two chunks, with contexts of several spans of keys, and at odd lengths."""
    shape = replace(SHAPES[name], format=kv_format)
    tokens, tables = Tokens(shape, [531]), [shuffled(40)]
    attention = Attention(library, shape, num_blocks=40)
    first, second = rows_of(0, range(270)), rows_of(0, range(270, 531))
    outputs = [attention.run(tokens, rows, tables) for rows in (first, second)]
    sample = [0, 1, 14, 15, 16, 63, 255, 256, 269, 270, 271, 400, 511, 512, 530]
    actual = np.concatenate(outputs)[sample]
    expected = tokens.expected([(0, p) for p in sample])
    for row, wanted in zip(actual, expected, strict=True):
        assert relative_error(row, wanted) < 2.5 * BOUNDS[kv_format]
    assert relative_error(actual, expected) < BOUNDS[kv_format]


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("name", ["groups", "wide, window", "small window, cap"])
def test_runs_that_are_seen_both_ways(library: Library, name: str, kv_format: KvFormat) -> None:
    """Runs within a span of keys, over its end and longer than it, in any step that has them."""
    shape = replace(SHAPES[name], format=kv_format)
    tokens = Tokens(shape, [700, 90], runs=[(5, 21), (250, 260), (300, 690)])
    order = shuffled(60)
    tables = [order[:45], order[45:]]
    whole = Attention(library, shape, num_blocks=60).run(tokens, rows_of(0, range(700)), tables)
    sample = [0, 4, 5, 20, 21, 249, 250, 255, 259, 260, 299, 300, 500, 511, 512, 689, 690, 699]
    expected = tokens.expected([(0, p) for p in sample])
    for row, wanted in zip(whole[sample], expected, strict=True):
        assert relative_error(row, wanted) < 2.5 * BOUNDS[kv_format]
    attention = Attention(library, shape, num_blocks=60, threads=3)
    for start, end in ((0, 5), (5, 240), (240, 260), (260, 697), (697, 699), (699, 700)):
        rows = [*rows_of(1, range(start % 7, 90)), *rows_of(0, range(start, end))]
        out = attention.run(tokens, rows, tables)[90 - start % 7 :]
        assert np.array_equal(out, whole[start:end])


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("name", ["groups", "wide, window", "small window, cap"])
def test_a_row_has_the_same_bits_in_any_step(
    library: Library, name: str, kv_format: KvFormat
) -> None:
    """In other chunks, blocks, block sizes and numbers of threads, and among other sequences."""
    shape = replace(SHAPES[name], format=kv_format)
    lengths = [531, 90, 300]
    tokens = Tokens(shape, lengths)
    whole = Attention(library, shape, threads=1).run(
        tokens, rows_of(0, range(lengths[0])), [range(40)]
    )
    for chunk, block_size, threads in ((37, 16, 2), (200, 48, 3), (130, 512, 1)):
        order = shuffled(120 * 16 // block_size + 6)
        size = 40 * 16 // block_size + 1
        tables = [order[i * size : (i + 1) * size] for i in range(3)]
        attention = Attention(
            library, shape, num_blocks=len(order), block_size=block_size, threads=threads
        )
        for start in range(0, lengths[0], chunk):
            own = rows_of(0, range(start, min(start + chunk, lengths[0])))
            others = rows_of(1, range(start % 7, 90)), rows_of(2, range(299, 300))
            rows = [*others[0], *own, *others[1]]
            out = attention.run(tokens, rows, tables)[len(others[0]) :][: len(own)]
            assert np.array_equal(out, whole[start : start + len(own)])
    decoded = attention.run(tokens, [(0, 530)], tables)
    assert np.array_equal(decoded[0], whole[530])


@pytest.mark.parametrize("kv_format", FORMATS)
@pytest.mark.parametrize("window", [0, 300])
def test_sequences_that_share_blocks_have_the_bits_they_have_alone(
    library: Library, kv_format: KvFormat, window: int
) -> None:
    """Also if one is still within the blocks that others share, and if groups are full."""
    shape = Shape(heads=8, kv_heads=1, dim=32, window=window, format=kv_format)
    lengths = [700, 641, 520, 530, 1025, 300, 40, 900, 770, 769, 768, 800]
    tokens, order = Tokens(shape, lengths, shared=512), shuffled(600)
    prefix, rest = order[:32], iter(order[32:])
    tables: list[list[int]] = []
    for i, n in enumerate(lengths):
        own = [next(rest) for _ in range(-(-n // 16))]
        tables.append(own if n < 512 or i == 4 else prefix + own[32:])
    attention = Attention(library, shape, num_blocks=600)
    for i, n in enumerate(lengths):
        attention.run(tokens, rows_of(i, range(n - 1)), tables)
    rows = [(i, n - 1) for i, n in enumerate(lengths)]
    together = attention.run(tokens, rows, tables)
    assert relative_error(together, tokens.expected(rows)) < BOUNDS[kv_format]
    for i, row in enumerate(rows):
        assert np.array_equal(attention.run(tokens, [row], tables)[0], together[i]), i


def test_many_steps_leave_no_trace(library: Library) -> None:
    """Steps of other sizes in between change nothing: split tokens are counted anew."""
    shape = Shape(heads=3, kv_heads=3)
    tokens, tables = Tokens(shape, [600, 900]), [shuffled(60), list(range(60, 120))]
    attention = Attention(library, shape, num_blocks=120)
    for i, n in enumerate((600, 900)):
        attention.run(tokens, rows_of(i, range(n)), tables)
    rows: Sequence[Row] = [(0, 599), (1, 899)]
    first = attention.run(tokens, rows, tables)
    for _ in range(20):
        assert np.array_equal(attention.run(tokens, rows, tables), first)


@pytest.mark.parametrize("kv_format", FORMATS)
def test_what_a_block_held_before_changes_nothing(library: Library, kv_format: KvFormat) -> None:
    """Neither huge nor infinite keys and values outlive their sequence."""
    shape = Shape(format=kv_format)
    tokens, rows, tables = Tokens(shape, [50]), rows_of(0, range(50)), [shuffled(4)]
    clean = Attention(library, shape, num_blocks=4).run(tokens, rows, tables)
    attention = Attention(library, shape, num_blocks=4)
    before = Tokens(shape, [64], seed=1)
    before.k[0][::3], before.v[0][::3], before.v[0][1::3] = np.inf, -np.inf, 3e38
    attention.run(before, rows_of(0, range(64)), tables)
    assert np.array_equal(attention.run(tokens, rows, tables), clean)


def test_very_large_and_very_small_numbers_in_int8(library: Library) -> None:
    shape = Shape(format=KvFormat.INT8)
    tokens, tables = Tokens(shape, [40]), [[1, 0, 2]]
    tokens.k[0] *= 1e-3
    tokens.v[0] *= 1e-5
    tokens.v[0][7] = 0.0
    rows = rows_of(0, range(40))
    actual = Attention(library, shape, num_blocks=3).run(tokens, rows, tables)
    assert relative_error(actual, tokens.expected(rows)) < 0.05  # scales are half precision
    tokens.v[0] *= 1e9
    actual = Attention(library, shape, num_blocks=3).run(tokens, rows, tables)
    assert relative_error(actual, tokens.expected(rows)) < BOUNDS[KvFormat.INT8]
