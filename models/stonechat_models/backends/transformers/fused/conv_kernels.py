"""Triton kernels of short convolutions, for the packed tokens of a step with prompts.

Their arguments are those of `scan_kernels`.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.fused.state_kernels import grouped_column, silu
from stonechat_models.hardware.dependent_launch import wait_for_inputs

_VARIES = ("padding_slot", "num_tokens")


@triton.jit
def conv_input(
    x,
    channels,
    inside,
    DTYPE: tl.constexpr,
    CHANNELS: tl.constexpr,
    GATES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
):
    """The inputs of `channels` in the rows at `x`, as `conv_update_kernel` reads them."""
    if GATES:
        gate = tl.load(x + channels, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + 2 * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
        value = gate * value
    elif GROUP > 0:
        columns = grouped_column(channels, GROUP, GROUPS, KEY, VALUE)
        value = tl.load(x + columns, mask=inside, other=0.0)
    else:
        value = tl.load(x + channels, mask=inside, other=0.0)
    return value.to(DTYPE)


@triton.jit(do_not_specialize=_VARIES)
def conv_packed_kernel(
    x,  # [T, ...]: the inputs, as in `conv_update_kernel`
    weight,  # [CHANNELS, TAPS]
    bias,  # [CHANNELS]
    states,  # [slots + 1, CHANNELS, TAPS], the last inputs
    slots,
    query_start,
    context_lens,
    sequences,
    output,  # [T, CHANNELS], contiguous
    stride_x,
    padding_slot,
    num_tokens,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATES: tl.constexpr,
    GATES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile of tokens, part): a causal convolution of each channel, as in
    `conv_update_kernel`. It changes no state: another program may still read it."""
    wait_for_inputs(EARLY)
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    channels = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    dtype: tl.constexpr = weight.dtype.element_ty
    is_token = rows < num_tokens
    sequence = tl.load(sequences + rows, mask=is_token, other=0)
    first = tl.load(query_start + sequence)
    length = tl.load(query_start + sequence + 1) - first
    slot = tl.load(slots + sequence)
    has_past = (tl.load(context_lens + sequence) > length) & (slot != padding_slot)
    inside = is_token[:, None] & (channels < CHANNELS)
    total = tl.zeros([TILE, BLOCK], tl.float32)
    for tap in tl.static_range(TAPS):
        source = rows - (TAPS - 1 - tap)
        is_own = source >= first
        x_rows = x + source[:, None].to(tl.int64) * stride_x
        tapped = conv_input(
            x_rows,
            channels,
            inside & is_own[:, None],
            dtype,
            CHANNELS,
            GATES,
            GROUP,
            GROUPS,
            KEY,
            VALUE,
        )
        if tap < TAPS - 1:
            place = (slot[:, None] * CHANNELS + channels) * TAPS + (TAPS + source - first)[:, None]
            is_kept = inside & (has_past & (source < first))[:, None]
            kept = tl.load(states + place, mask=is_kept, other=0.0)
            tapped = tl.where(is_kept, kept.to(dtype), tapped)
        is_channel = channels < CHANNELS
        scale = tl.load(weight + channels * TAPS + tap, mask=is_channel, other=0.0).to(tl.float32)
        total += tapped.to(tl.float32) * scale
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=channels < CHANNELS, other=0.0).to(tl.float32)
    total = total.to(dtype).to(tl.float32)
    if ACTIVATES:
        total = silu(total)
    if GATES:
        gates = x + rows[:, None].to(tl.int64) * stride_x + CHANNELS + channels
        total *= tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    places = output + rows[:, None].to(tl.int64) * CHANNELS + channels
    tl.store(places, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_VARIES)
def conv_keep_kernel(
    x,
    weight,  # for its dtype
    states,
    slots,
    query_start,
    context_lens,
    stride_x,
    padding_slot,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
    GATES: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (sequence, part): keeps the last TAPS inputs of each channel, after
    `conv_packed_kernel`."""
    wait_for_inputs(EARLY)
    sequence = tl.program_id(0)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dtype: tl.constexpr = weight.dtype.element_ty
    first = tl.load(query_start + sequence)
    end = tl.load(query_start + sequence + 1)
    slot = tl.load(slots + sequence)
    num_channels = tl.where(slot == padding_slot, 0, CHANNELS)
    num_kept = tl.where(tl.load(context_lens + sequence) > end - first, num_channels, 0)
    state = states + (slot * CHANNELS + channels) * TAPS
    for tap in tl.static_range(TAPS):
        source = end - TAPS + tap
        is_own = channels < tl.where(source < first, 0, num_channels)
        x_row = x + source.to(tl.int64) * stride_x
        value = conv_input(
            x_row, channels, is_own, dtype, CHANNELS, GATES, GROUP, GROUPS, KEY, VALUE
        )
        # A channel's numbers are in one thread, which moves them one by one.
        is_kept = channels < tl.where(source < first, num_kept, 0)
        kept = tl.load(state + TAPS + source - first, mask=is_kept, other=0.0)
        value = tl.where(is_kept, kept.to(dtype), value)
        value = value.to(states.dtype.element_ty)
        tl.store(state + tap, value, mask=channels < num_channels)
