"""Triton kernels of the sampler: the largest logits, the draw, and log-probabilities.

`sampler` launches them in the order of this file. The kernels of `truncation` come
before the draw.
"""

import triton
import triton.language as tl

from stonechat_models.sampling.triton.rows import (
    BEST,
    CHUNK,
    GREEDY,
    NUM_PEAKS,
    NUM_TOPS,
    NUM_WEIGHED,
    RAW,
    TEMPERATURE,
    TOKEN_ROW,
    TOP_K,
    VARIATE,
    WORDS,
    as_floats,
    is_last,
    load_floor,
    load_kind,
    load_scale,
    load_threshold,
    row_logits,
    store_threshold,
)
from stonechat_models.sampling.triton.weights import (
    NO_LOGIT,
    fold,
    load_packed,
    load_sums,
    load_weights,
    packed_logit,
    packed_token,
    pick,
    weigh,
)
from stonechat_models.types import MAX_TOP_LOGPROBS

COLUMNS = tl.constexpr(256)
"""Entries of the first level in a chunk. Each is the sum of 16 tokens."""

MAX_TOPS = tl.constexpr(MAX_TOP_LOGPROBS)


@triton.jit
def best_of_rank(chunk_bests, num_chunks, rank, CHUNKS: tl.constexpr):
    """The logit that the best of `rank` chunks reach, so that many tokens do."""
    chunks = tl.arange(0, CHUNKS)
    bests = tl.load(chunk_bests + chunks, mask=chunks < num_chunks, other=NO_LOGIT)
    num_as_large = tl.sum((bests[None, :] >= bests[:, None]).to(tl.int32), 1)
    return packed_logit(tl.max(tl.where(num_as_large >= rank, bests, NO_LOGIT), 0))


@triton.jit(do_not_specialize_on_alignment=["chunk_bests", "tokens", "peaks"])
def peak_kernel(
    logits,  # float[S, V]
    records,  # int64[R, WORDS]
    chunk_bests,  # int64[R, chunks]
    tokens,  # int64[R]
    peaks,  # float64[R]
    vocab_size,
    num_chunks,
    CHUNKS: tl.constexpr,
):
    """Find the largest logit of each row, the token of greedy rows: program (chunk, row).

    The threshold of a row with a small top_k becomes a lower bound.
    """
    chunk = tl.program_id(0)
    i = tl.program_id(1)
    record = records + i * WORDS
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    row = row_logits(logits, record, vocab_size)
    best = tl.max(load_packed(row, columns, vocab_size), 0)
    tl.store(chunk_bests + i * tl.num_programs(0) + chunk, best)
    tl.atomic_max(record + BEST, best)
    if is_last(record + NUM_PEAKS, tl.num_programs(0)):
        best = tl.atomic_max(record + BEST, NO_LOGIT)
        peak = packed_logit(best)
        tl.store(peaks + i, peak.to(tl.float64))
        tl.store(tokens + i, packed_token(best).to(tl.int64))
        top_k = tl.load(record + TOP_K)
        if (top_k > 0) & (top_k <= num_chunks) & (tl.abs(peak) < float("inf")):
            bound = best_of_rank(chunk_bests + i * num_chunks, num_chunks, top_k, CHUNKS)
            temperature = tl.load(as_floats(record) + TEMPERATURE).to(tl.float32)
            bound = weigh(bound + tl.zeros([1], tl.float32), peak, temperature)
            store_threshold(record, tl.maximum(tl.max(bound, 0), load_floor(record)))


@triton.jit(do_not_specialize_on_alignment=["second_level", "tokens", "masses"])
def choose_kernel(
    logits,  # float[S, V]
    records,  # int64[R, WORDS]
    first_level,  # float32[R, width]
    second_level,  # float32[R, width / 16]
    tokens,  # int64[R]
    masses,  # float64[R]
    vocab_size,
    width,  # of the first level
    DEEP: tl.constexpr,
    NUM_ROOTS: tl.constexpr,
):
    """Sum the weights, and draw a token in the order of `inverse_cdf.draw`."""
    chunk = tl.program_id(0)
    i = tl.program_id(1)
    record = records + i * WORDS
    kind = load_kind(record)
    if kind != GREEDY:
        peak, temperature = load_scale(record)
        threshold = load_threshold(record)
        columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
        row = row_logits(logits, record, vocab_size)
        weights = load_weights(row, columns, width, vocab_size, peak, temperature, threshold)
        first_level += i.to(tl.int64) * width
        tl.store(first_level + columns, fold(weights, COLUMNS))
        if is_last(record + NUM_WEIGHED, tl.num_programs(0)):
            second_width = width // 16
            root_level = first_level
            root_width = second_width
            if DEEP:
                second_level += i * second_width
                for start in range(0, second_width, COLUMNS):
                    columns = start + tl.arange(0, COLUMNS)
                    sums = fold(load_sums(first_level, columns, second_width), COLUMNS)
                    tl.store(second_level + columns, sums, mask=columns < second_width)
                tl.debug_barrier()
                root_level = second_level
                root_width = second_width // 16
            roots = tl.arange(0, NUM_ROOTS)
            sums = fold(load_sums(root_level, roots, root_width), NUM_ROOTS)
            mass = tl.sum(sums.to(tl.float64), 0)
            tl.store(masses + i, mass)
            steps = tl.arange(0, 16)
            index, target = pick(sums, tl.load(as_floats(record) + VARIATE) * mass)
            if DEEP:
                sums = tl.load(second_level + index + steps * root_width)
                child, target = pick(sums, target)
                index += child * root_width
            sums = tl.load(first_level + index + steps * second_width)
            child, target = pick(sums, target)
            index += child * second_width
            leaf = index + tl.zeros([1], tl.int32)
            leaves = load_weights(row, leaf, width, vocab_size, peak, temperature, threshold)
            child, target = pick(tl.reshape(leaves, [16]), target)
            index += child * width
            if kind != RAW:
                tl.store(tokens + i, tl.minimum(index, vocab_size - 1).to(tl.int64))


@triton.jit(do_not_specialize_on_alignment=["chunk_bests", "tokens", "chosen", "tops"])
def tops_kernel(
    logits,  # float[S, V]
    records,  # int64[L, WORDS], those of the raw rows
    chunk_bests,  # int64[L, chunks]
    tokens,  # int64[R]
    chosen,  # float64[L], the logits of the tokens
    tops,  # int64[L, MAX_TOPS], in the form of `pack_logit`
    vocab_size,
    num_chunks,
    CHUNKS: tl.constexpr,
):
    """Find the logit of the row's token, and the largest logits: program (raw row)."""
    i = tl.program_id(0)
    record = records + i * WORDS
    row = row_logits(logits, record, vocab_size)
    token = tl.load(tokens + tl.load(record + TOKEN_ROW))
    tl.store(chosen + i, tl.load(row + token).to(tl.float32).to(tl.float64))
    chunks = tl.arange(0, CHUNKS)
    bests = tl.load(chunk_bests + i * num_chunks + chunks, mask=chunks < num_chunks, other=NO_LOGIT)
    num_tops = tl.load(record + NUM_TOPS).to(tl.int32)
    for top in range(0, num_tops):
        best = tl.max(bests, 0)
        tl.store(tops + i * MAX_TOPS + top, best)
        chunk = packed_token(best) // CHUNK
        columns = chunk * CHUNK + tl.arange(0, CHUNK)
        packed = load_packed(row, columns, vocab_size)
        next_best = tl.max(tl.where(packed < best, packed, NO_LOGIT), 0)
        bests = tl.where(chunks == chunk, next_best, bests)
