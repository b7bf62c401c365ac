"""Triton kernels that find the least weight that top_k, min_p and top_p keep.

Tallies narrow the range in which it lies, the weights in that range are gathered, and a search
among them finds it exactly. `sampler` launches the kernels in the order of this file.
"""

import triton
import triton.language as tl

from stonechat_models.sampling.triton.rows import (
    CHUNK,
    FINER,
    MASS,
    MASS_ABOVE,
    NUM_CANDIDATES,
    TALLIES,
    TOP_K,
    TOP_P,
    TRUNCATED,
    WORDS,
    as_floats,
    load_floor,
    load_kind,
    load_scale,
    load_threshold,
    row_logits,
    store_threshold,
)
from stonechat_models.sampling.triton.weights import (
    in_fixed_point,
    load_chunk,
)

CUTS = tl.constexpr(16)

MANY = tl.constexpr(2048)
"""More candidates are narrowed by finer tallies."""

MARGIN = tl.constexpr(1e-4)
"""Bounds the relative error of a sum of float32 in any order, generously."""

ABOVE_ALL = tl.constexpr(2.0)


@triton.jit
def cut_weights(floor):
    """float32[16]: 1/2, 1/4, … 2^-15 and 0, but none below `floor`."""
    exponents = 126 - tl.arange(0, CUTS)
    powers = (exponents << 23).to(tl.float32, bitcast=True)
    powers = tl.where(exponents > 127 - CUTS, powers, 0.0)
    return tl.maximum(powers, floor)


@triton.jit
def finer_cuts(low, high):
    """float32[16]: weights from `low` up to `high`, whose bits are as far apart."""
    first = low.to(tl.int32, bitcast=True)
    step = (high.to(tl.int32, bitcast=True) - first + CUTS - 1) // CUTS
    return (first + step * tl.arange(0, CUTS)).to(tl.float32, bitcast=True)


@triton.jit
def tally(tallies, weights, weights_of_cuts, BY_COUNT: tl.constexpr):
    """Add the number or the mass of the weights that each cut keeps to float32[16] in a record.

    The order of these additions is free, for the tallies only narrow the search.
    """
    cuts = tl.arange(0, CUTS)
    kept = tl.zeros([CUTS], tl.float32)
    for i in range(CUTS):
        cut = tl.max(tl.where(cuts == i, weights_of_cuts, 0.0), 0)
        amounts = tl.where(weights >= cut, 1.0 if BY_COUNT else weights, 0.0)
        kept = tl.where(cuts == i, tl.sum(amounts, 0), kept)
    tl.atomic_add(tallies.to(tl.pointer_type(tl.float32)) + cuts, kept)


@triton.jit
def tally_kernel(
    logits,  # float[S, V]
    records,  # int64[R, WORDS]
    vocab_size,
    num_chunks,
):
    """Count, or weigh if top_k is off, what each cut of `cut_weights` keeps, approximately."""
    chunk = tl.program_id(0)
    record = records + tl.program_id(1) * WORDS
    top_k = tl.load(record + TOP_K)
    if (load_kind(record) == TRUNCATED) & ((top_k == 0) | (top_k > num_chunks)):
        peak, temperature = load_scale(record)
        row = row_logits(logits, record, vocab_size)
        weights, is_token = load_chunk(row, chunk, vocab_size, peak, temperature, CHUNK)
        weights = tl.where(is_token, weights, -1.0)
        weights_of_cuts = cut_weights(load_floor(record))
        if top_k > 0:
            tally(record + TALLIES, weights, weights_of_cuts, True)
        else:
            tally(record + TALLIES, weights, weights_of_cuts, False)


@triton.jit
def refine_kernel(
    logits,  # float[S, V]
    records,  # int64[R, WORDS]
    vocab_size,
):
    """Weigh what each of `finer_cuts` keeps, in rows with many candidates."""
    record = records + tl.program_id(1) * WORDS
    if (load_kind(record) == TRUNCATED) & (tl.load(record + TOP_K) == 0):
        low, high, is_wide = range_of_tallies(record, load_floor(record), 0)
        if is_wide:
            peak, temperature = load_scale(record)
            row = row_logits(logits, record, vocab_size)
            chunk = tl.program_id(0)
            weights, is_token = load_chunk(row, chunk, vocab_size, peak, temperature, CHUNK)
            weights = tl.where(is_token & (weights >= load_floor(record)), weights, -1.0)
            tally(record + FINER, weights, finer_cuts(low, high), False)


@triton.jit
def load_range(record, num_chunks):
    """Weights low <= high: the threshold to search for is in this range."""
    floor = load_floor(record)
    top_k = tl.load(record + TOP_K)
    if (top_k > 0) & (top_k <= num_chunks):
        low = load_threshold(record)
        high = floor * 0.0 + ABOVE_ALL
    else:
        low, high, is_wide = range_of_tallies(record, floor, top_k)
        if is_wide:
            cuts = finer_cuts(low, high)
            low, high = narrowed(record + FINER, cuts, load_share(record), low, high)
    return low, high


@triton.jit
def load_tallies(tallies):
    """float32[16] of a record."""
    return tl.load(tallies.to(tl.pointer_type(tl.float32)) + tl.arange(0, CUTS))


@triton.jit
def load_share(record):
    """About the mass that top_p keeps, if top_k is off."""
    total = tl.max(load_tallies(record + TALLIES), 0)
    return tl.load(as_floats(record) + TOP_P).to(tl.float32) * total


@triton.jit
def narrowed(tallies, weights_of_cuts, target, low, high):
    """The part of the range from `low` to `high` in which about `target` is kept."""
    kept = load_tallies(tallies)
    high = tl.min(tl.where(kept < target * (1 - MARGIN), weights_of_cuts, high), 0)
    low = tl.max(tl.where(kept >= target * (1 + MARGIN), weights_of_cuts, low), 0)
    return low, high


@triton.jit
def range_of_tallies(record, floor, top_k):
    """The range by the first tallies, and whether it has many candidates."""
    kept = load_tallies(record + TALLIES)
    weights = cut_weights(floor)
    if top_k > 0:  # all of the heaviest are candidates, since top_p is a share of their mass
        low = tl.max(tl.where(kept >= top_k.to(tl.float32), weights, floor), 0)
        high = floor * 0.0 + ABOVE_ALL
        is_wide = top_k < 0
    else:
        share = load_share(record)
        low, high = narrowed(record + TALLIES, weights, share, floor, floor * 0.0 + ABOVE_ALL)
        inside = tl.max(tl.where(weights >= low, kept, 0.0), 0)
        inside -= tl.max(tl.where(weights >= high, kept, 0.0), 0)
        is_wide = inside > MANY * low
    return low, high, is_wide


@triton.jit
def gather_kernel(
    logits,  # float[S, V]
    records,  # int64[R, WORDS]
    candidates,  # float32[R, chunks * CHUNK]
    vocab_size,
    num_chunks,
):
    """Copy the weights in the range of `load_range`, and sum those above it and all."""
    chunk = tl.program_id(0)
    i = tl.program_id(1)
    record = records + i * WORDS
    if load_kind(record) == TRUNCATED:
        peak, temperature = load_scale(record)
        row = row_logits(logits, record, vocab_size)
        low, high = load_range(record, num_chunks)
        weights, is_token = load_chunk(row, chunk, vocab_size, peak, temperature, CHUNK)
        is_token &= (weights >= load_floor(record)) & (weights > 0)
        weights = tl.where(is_token, weights, -1.0)
        if tl.load(record + TOP_K) == 0:
            amounts = tl.where(is_token, in_fixed_point(weights), 0)
            tl.atomic_add(record + MASS, tl.sum(amounts, 0))
            amounts = tl.where(weights >= high, amounts, 0)
            tl.atomic_add(record + MASS_ABOVE, tl.sum(amounts, 0))
        is_candidate = (weights >= low) & (weights < high)
        num_candidates = tl.sum(is_candidate.to(tl.int32), 0)
        if num_candidates > 0:
            first = tl.atomic_add(record + NUM_CANDIDATES, num_candidates.to(tl.int64))
            start = candidates + i.to(tl.int64) * num_chunks * CHUNK + first
            ends = tl.cumsum(is_candidate.to(tl.int32), 0)
            tl.store(start + ends - 1, weights, mask=is_candidate)


@triton.jit
def search(
    candidates,
    num_candidates,
    low,
    high,
    target,
    above,
    BY_COUNT: tl.constexpr,
    TILE: tl.constexpr,
):
    """The largest key in [low, high) such that the candidates from it on amount to `target`.

    Keys are the bits of weights. `above` is the amount of the keys from `high` on. A key that
    keeps the same candidates may be returned instead.
    """
    cuts = tl.arange(0, CUTS)
    num_above = tl.zeros([], tl.int32)
    num_inside = num_candidates.to(tl.int32)
    while (high - low > 1) & (num_inside > 1):
        step = (high - low + CUTS - 1) // CUTS
        pivots = low + step * cuts
        tile_counts = tl.zeros([TILE, CUTS], tl.int32)
        tile_sums = tl.zeros([TILE, CUTS], tl.int64)
        for start in range(0, num_candidates, TILE):
            index = start + tl.arange(0, TILE)
            weights = tl.load(candidates + index, mask=index < num_candidates, other=0.0)
            keys = tl.where(index < num_candidates, weights.to(tl.int32, bitcast=True), -1)
            amounts = (keys >= 0).to(tl.int64) if BY_COUNT else in_fixed_point(weights)
            is_kept = (keys[:, None] >= pivots[None, :]) & (keys[:, None] < high)
            tile_counts += is_kept.to(tl.int32)
            tile_sums += tl.where(is_kept, amounts[:, None], 0)
        counts = tl.sum(tile_counts, 0)
        sums = tl.sum(tile_sums, 0)
        is_enough = (above + sums >= target) & (pivots < high)
        best = tl.maximum(tl.sum(is_enough.to(tl.int32), 0) - 1, 0)
        low += step * best
        is_next = (cuts == best + 1) & (pivots < high)
        above += tl.sum(tl.where(is_next, sums, 0), 0)
        num_above = tl.sum(tl.where(is_next, counts, 0), 0)
        num_inside = tl.sum(tl.where(cuts == best, counts, 0), 0) - num_above
        high = tl.minimum(high, low + step)
    return low


@triton.jit
def threshold_kernel(
    records,  # int64[R, WORDS]
    candidates,  # float32[R, chunks * CHUNK]
    num_chunks,
    TILE: tl.constexpr,
):
    """Find the least weight that top_k, min_p and top_p keep: program (row)."""
    i = tl.program_id(0)
    record = records + i * WORDS
    if load_kind(record) == TRUNCATED:
        candidates += i.to(tl.int64) * num_chunks * CHUNK
        num_candidates = tl.load(record + NUM_CANDIDATES)
        low, high = load_range(record, num_chunks)
        lowest = low.to(tl.int32, bitcast=True)
        end = high.to(tl.int32, bitcast=True)
        above = tl.load(record + MASS_ABOVE)
        mass = tl.load(record + MASS)
        top_k = tl.load(record + TOP_K)
        top_p = tl.load(as_floats(record) + TOP_P)
        if top_k > 0:  # `low` is the floor, or as many as top_k reach it
            if top_k < num_candidates:
                lowest = search(candidates, num_candidates, lowest, end, top_k, above, True, TILE)
            for start in range(0, num_candidates, TILE):
                index = start + tl.arange(0, TILE)
                weights = tl.load(candidates + index, mask=index < num_candidates, other=0.0)
                is_kept = weights.to(tl.int32, bitcast=True) >= lowest
                mass += tl.sum(tl.where(is_kept, in_fixed_point(weights), 0), 0)
        if top_p < 1.0:
            target = tl.maximum(tl.ceil(top_p * mass.to(tl.float64)).to(tl.int64), 1)
            target = tl.minimum(target, mass)
            lowest = search(candidates, num_candidates, lowest, end, target, above, False, TILE)
        store_threshold(record, lowest)
