"""Triton kernels that edit logits as `sampling.edits` does: one for few tokens, one for masks."""

import triton
import triton.language as tl

# Words of a record, int64. Addresses are of tensors on the device.
ROW = tl.constexpr(0)
BIAS_IDS = tl.constexpr(1)
BIAS_AMOUNTS = tl.constexpr(2)
NUM_BIAS = tl.constexpr(3)
PROMPT_IDS = tl.constexpr(4)
NUM_PROMPT = tl.constexpr(5)
PENALTY = tl.constexpr(6)  # repetition_penalty, as float64
FIRST = tl.constexpr(7)  # of the row's entries, counted from the first record
NUM_OUTPUT = tl.constexpr(8)
NUM_FRESH = tl.constexpr(9)  # output tokens that the prompt does not have: they come first
NUM_SUPPRESSED = tl.constexpr(10)
WORDS = tl.constexpr(11)

MASK_WORDS = tl.constexpr(128)
"""Of a program of `mask_kernel`: 4096 tokens."""


@triton.jit
def repeat_less(row, tokens, mask, penalty):
    """Divide positive logits by the repetition penalty, multiply the others by it."""
    logits = tl.load(row + tokens, mask=mask, other=0.0)
    divided = tl.math.div_rn(logits, tl.zeros_like(logits) + penalty)
    tl.store(row + tokens, tl.where(logits > 0, divided, logits * penalty), mask=mask)


@triton.jit
def edit_kernel(
    logits,  # float32[R, V]
    records,  # int64: records of WORDS, then entries: a token, and the bits of a float32
    vocab_size,
    TILE: tl.constexpr,
):
    """Apply bias, penalties and suppression to a row: program (record).

    A barrier ends each kind of edit, because a token may have several.
    """
    record = records + tl.program_id(0) * WORDS
    row = logits + tl.load(record + ROW) * vocab_size
    steps = tl.arange(0, TILE)

    ids = tl.load(record + BIAS_IDS).to(tl.pointer_type(tl.int64))
    amounts = tl.load(record + BIAS_AMOUNTS).to(tl.pointer_type(tl.float32))
    count = tl.load(record + NUM_BIAS)
    for start in range(0, count, TILE):
        mask = start + steps < count
        tokens = tl.load(ids + start + steps, mask=mask, other=0)
        values = tl.load(row + tokens, mask=mask, other=0.0)
        values += tl.load(amounts + start + steps, mask=mask, other=0.0)
        tl.store(row + tokens, values, mask=mask)
    tl.debug_barrier()

    entries = records + tl.load(record + FIRST)
    count = tl.load(record + NUM_OUTPUT)
    for start in range(0, count, TILE):
        mask = start + steps < count
        packed = tl.load(entries + start + steps, mask=mask, other=0)
        tokens = packed >> 32
        values = tl.load(row + tokens, mask=mask, other=0.0)
        values += packed.to(tl.int32).to(tl.float32, bitcast=True)
        tl.store(row + tokens, values, mask=mask)
    tl.debug_barrier()

    penalty = tl.load(record.to(tl.pointer_type(tl.float64)) + PENALTY).to(tl.float32)
    fresh = tl.load(record + NUM_FRESH)
    for start in range(0, fresh, TILE):
        mask = start + steps < fresh
        tokens = tl.load(entries + start + steps, mask=mask, other=0) >> 32
        repeat_less(row, tokens, mask, penalty)
    ids = tl.load(record + PROMPT_IDS).to(tl.pointer_type(tl.int64))
    num_prompt = tl.load(record + NUM_PROMPT)
    for start in range(0, num_prompt, TILE):
        mask = start + steps < num_prompt
        repeat_less(row, tl.load(ids + start + steps, mask=mask, other=0), mask, penalty)
    tl.debug_barrier()

    entries += count
    count = tl.load(record + NUM_SUPPRESSED)
    for start in range(0, count, TILE):
        mask = start + steps < count
        tokens = tl.load(entries + start + steps, mask=mask, other=0) >> 32
        tl.store(row + tokens, tl.zeros([TILE], tl.float32) - float("inf"), mask=mask)


@triton.jit
def mask_kernel(
    logits,  # float32[R, V]
    masks,  # int32[N, 1 + num_words]: a row of the logits, and its bitmask
    vocab_size,
    num_words,
):
    """Set the tokens whose bit is 0 to -inf: program (part of the words, mask)."""
    mask = masks + tl.program_id(1) * (num_words + 1)
    row = logits + tl.load(mask).to(tl.int64) * vocab_size
    index = tl.program_id(0) * MASK_WORDS + tl.arange(0, MASK_WORDS)
    words = tl.load(mask + 1 + index, mask=index < num_words, other=-1)
    bits = tl.arange(0, 32)
    is_allowed = ((words[:, None] >> bits[None, :]) & 1) != 0
    tokens = index[:, None] * 32 + bits[None, :]
    never = tl.zeros([MASK_WORDS, 32], tl.float32) - float("inf")
    tl.store(row + tokens, never, mask=(tokens < vocab_size) & (is_allowed == 0))
