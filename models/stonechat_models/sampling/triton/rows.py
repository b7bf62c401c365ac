"""The record of a row, which the sampler's Triton kernels read and write.

It is of int64 words, of which the host fills the first. A program handles a chunk of a row, so a
row has as many programs, and the same bits, in any batch. Programs add to their row's record by
integer atomics, whose order does not matter.
"""

import triton
import triton.language as tl

from stonechat_models.sampling.triton.weights import packed_logit

GREEDY = tl.constexpr(0)
PLAIN = tl.constexpr(1)
TRUNCATED = tl.constexpr(2)
RAW = tl.constexpr(3)
"""Kinds of rows. A raw row gets no token: it is for log-probabilities."""

# Words of a record, as int64 or float64.
SOURCE = tl.constexpr(0)
KIND = tl.constexpr(1)
TEMPERATURE = tl.constexpr(2)
MIN_P = tl.constexpr(3)
TOP_P = tl.constexpr(4)
TOP_K = tl.constexpr(5)
VARIATE = tl.constexpr(6)
TOKEN_ROW = tl.constexpr(7)
NUM_TOPS = tl.constexpr(8)
BEST = tl.constexpr(9)
NUM_PEAKS = tl.constexpr(10)
NUM_WEIGHED = tl.constexpr(11)
NUM_CANDIDATES = tl.constexpr(12)
MASS_ABOVE = tl.constexpr(13)
MASS = tl.constexpr(14)
THRESHOLD = tl.constexpr(15)
TALLIES = tl.constexpr(16)  # 16 float32
FINER = tl.constexpr(24)  # 16 float32
WORDS = tl.constexpr(32)

CHUNK = tl.constexpr(4096)


@triton.jit
def as_floats(words):
    """The same words as float64."""
    return words.to(tl.pointer_type(tl.float64))


@triton.jit
def row_logits(logits, record, vocab_size):
    """The logits of the record's row."""
    return logits + tl.load(record + SOURCE) * vocab_size


@triton.jit
def is_last(counter, count):
    """Whether this program is the last of `count` here. What the others stored is then visible."""
    tl.debug_barrier()
    arrived = tl.atomic_add(counter, 1)
    return arrived == count - 1


@triton.jit
def load_kind(record):
    """The kind of the row, GREEDY if its peak is not finite: such a row has no distribution."""
    peak = packed_logit(tl.load(record + BEST))
    return tl.where(tl.abs(peak) < float("inf"), tl.load(record + KIND), GREEDY)


@triton.jit
def load_scale(record):
    """The row's peak and temperature, float32."""
    peak = packed_logit(tl.load(record + BEST))
    return peak, tl.load(as_floats(record) + TEMPERATURE).to(tl.float32)


@triton.jit
def load_floor(record):
    """The row's min_p, float32: the largest weight is 1."""
    return tl.load(as_floats(record) + MIN_P).to(tl.float32)


@triton.jit
def load_threshold(record):
    """The row's threshold so far, float32. The host sets it to min_p."""
    return tl.load(record + THRESHOLD).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def store_threshold(record, weight):
    """Set the row's threshold."""
    tl.store(record + THRESHOLD, weight.to(tl.int32, bitcast=True).to(tl.int64))
