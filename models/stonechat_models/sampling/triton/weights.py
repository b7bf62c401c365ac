"""Parts of the sampler's Triton kernels: weights of logits, sums in the order of `inverse_cdf`."""

import triton
import triton.language as tl

FANOUT = tl.constexpr(16)
_LOG2E = tl.constexpr(1.4426950408889634)
# ln 2 in two parts. The first has few bits, so its products with small integers are exact.
_LN2_HIGH = tl.constexpr(0.693359375)
_LN2_LOW = tl.constexpr(-2.12194440e-4)
# A float32 near it has an integer in its low bits: the rest is shifted out.
_INTEGERS = tl.constexpr(12582912.0)
_LOWEST = tl.constexpr(-86.0)
_FIXED_POINT = tl.constexpr(4398046511104.0)  # 2 ** 42
NAN_KEY = tl.constexpr(0x7FFFFFFF)
NO_LOGIT = tl.constexpr(-0x8000000000000000)


@triton.jit
def exponential(x):
    """exp(x) for float32 x <= 0, within two units in the last place; exactly 1 at 0.

    All kernels get the same bits: no rounding depends on what the compiler fuses. Below -86 it
    is 0, and for NaN.
    """
    is_normal = x > _LOWEST
    x = tl.where(is_normal, x, 0.0)
    shifted = tl.fma(x, _LOG2E, _INTEGERS)
    power = shifted - _INTEGERS
    rest = tl.fma(power, -_LN2_HIGH, x)
    rest = tl.fma(power, -_LN2_LOW, rest)
    mantissa = tl.exp2(rest * _LOG2E)
    exponent = shifted.to(tl.int32, bitcast=True) << 23
    bits = mantissa.to(tl.int32, bitcast=True) + exponent
    return tl.where(is_normal, bits.to(tl.float32, bitcast=True), 0.0)


@triton.jit
def weigh(logits, peak, temperature):
    """exp((logit - peak) / temperature), the operations of `Sampler._weigh`."""
    return exponential(divide(logits - peak, temperature))


@triton.jit
def divide(x, divisor):
    """x / divisor, correctly rounded: one reciprocal serves all x. It takes x <= 0, divisor > 0.

    Results below -1000 may be larger: their exponentials are 0 as well.
    """
    x = tl.maximum(x, divisor * -1000.0)
    inverse = tl.math.div_rn(divisor * 0.0 + 1.0, divisor)
    quotient = x * inverse
    rest = tl.fma(-quotient, divisor + tl.zeros_like(x), x)
    return tl.fma(rest, inverse + tl.zeros_like(x), quotient)


@triton.jit
def load_weights(row, columns, width, vocab_size, peak, temperature, threshold):
    """The weights float32[16, B] of the tokens that the entries `columns` of the first level sum.

    `row` points to a row of logits, `width` is that of the first level. Weights below `threshold`
    are 0.
    """
    tokens = tl.arange(0, FANOUT)[:, None] * width + columns[None, :]
    logits = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf")).to(tl.float32)
    weights = weigh(logits, peak, temperature)
    return tl.where(weights >= threshold, weights, 0.0)


@triton.jit
def load_chunk(row, chunk, vocab_size, peak, temperature, SIZE: tl.constexpr):
    """The weights float32[SIZE] of a chunk of adjacent tokens, and whether each is a token."""
    tokens = chunk * SIZE + tl.arange(0, SIZE)
    is_token = tokens < vocab_size
    logits = tl.load(row + tokens, mask=is_token, other=float("-inf")).to(tl.float32)
    return weigh(logits, peak, temperature), is_token


@triton.jit
def fold(rows, B: tl.constexpr):
    """Sum float32[16, B] to [B] in the order of `fold_sum`: each step adds two entries."""
    rows = tl.sum(tl.reshape(rows, [2, 8, B]), 0)
    rows = tl.sum(tl.reshape(rows, [2, 4, B]), 0)
    rows = tl.sum(tl.reshape(rows, [2, 2, B]), 0)
    return tl.sum(rows, 0)


@triton.jit
def load_sums(level, columns, width):
    """Entries float32[16, B] of a level that the entries `columns` of the next level sum.

    `width` is that of the next level.
    """
    index = tl.arange(0, FANOUT)[:, None] * width + columns[None, :]
    return tl.load(level + index, mask=columns[None, :] < width, other=0.0)


@triton.jit
def pick(sums, target):
    """The first positive entry of float32[B] whose prefix sum exceeds `target`, and the rest of
    `target`; see `inverse_cdf._pick`."""
    columns = tl.arange(0, sums.shape[0])
    sums = sums.to(tl.float64)
    prefix = tl.cumsum(sums, 0)
    is_positive = sums > 0
    first = tl.min(tl.where(is_positive & (prefix > target), columns, sums.shape[0]), 0)
    last = tl.max(tl.where(is_positive, columns, 0), 0)
    index = tl.where(first < sums.shape[0], first, last)
    before = tl.sum(tl.where(columns == index, prefix - sums, 0.0), 0)
    return index, tl.maximum(target - before, 0.0)


@triton.jit
def in_fixed_point(weights):
    """int64: weights with 42 bits after the point. The order of their additions is free."""
    return (weights * _FIXED_POINT).to(tl.int64)


@triton.jit
def pack_logit(logits, tokens):
    """int64 that orders tokens by logit, those of equal logits by token, last first.

    NaN is the largest logit, as for numpy's argmax.
    """
    logits = tl.where(logits == 0.0, 0.0, logits)  # -0.0 equals 0.0
    bits = logits.to(tl.int32, bitcast=True)
    keys = tl.where(logits != logits, NAN_KEY, bits ^ ((bits >> 31) & NAN_KEY))
    return (keys.to(tl.int64) << 32) | (tokens ^ NAN_KEY).to(tl.int64)


@triton.jit
def packed_logit(packed):
    """The float32 logit in a result of `pack_logit`."""
    keys = (packed >> 32).to(tl.int32)
    return (keys ^ ((keys >> 31) & NAN_KEY)).to(tl.float32, bitcast=True)


@triton.jit
def packed_token(packed):
    """The token in a result of `pack_logit`."""
    return (packed & NAN_KEY).to(tl.int32) ^ NAN_KEY


@triton.jit
def load_packed(row, tokens, vocab_size):
    """`pack_logit` of the tokens of a row. Beyond the vocabulary it is the least int64."""
    is_token = tokens < vocab_size
    logits = tl.load(row + tokens, mask=is_token, other=0.0).to(tl.float32)
    return tl.where(is_token, pack_logit(logits, tokens), NO_LOGIT)
