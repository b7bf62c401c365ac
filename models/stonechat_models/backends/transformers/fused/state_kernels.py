"""Triton kernels for one token of recurrent layers. Each changes the states in its slots.

`slots` int64[rows] says where the state of each row lies. A row with the slot `padding_slot` begins
with zeros and stores no state.
"""

import triton
import triton.language as tl

from stonechat_models.hardware.dependent_launch import wait_for_inputs

_VARIES = ("padding_slot",)
"""It differs between the check at load, the largest step and the pool. One kernel serves all."""


@triton.jit
def silu(x):
    """Of float32 numbers. So is `softplus`."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def softplus(x):
    """log(1 + exp(x)), without overflow. For small exponentials a series is more exact."""
    small = tl.exp(-tl.abs(x))
    log = tl.where(small < 1e-3, small * (1.0 - small * (0.5 - small / 3.0)), tl.log(1.0 + small))
    return tl.maximum(x, 0.0) + log


@triton.jit
def grouped_column(
    channel, GROUP: tl.constexpr, GROUPS: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr
):
    """Where a channel (all queries, all keys, all values) is in a row of groups, each of which has
    the KEY numbers of a query, those of a key, VALUE numbers, and others: GROUP in all."""
    keys: tl.constexpr = GROUPS * KEY
    is_value = channel >= 2 * keys
    size = tl.where(is_value, VALUE, KEY)
    first = tl.where(is_value, 2 * keys, tl.where(channel >= keys, keys, 0))
    offset = tl.where(is_value, 2 * KEY, tl.where(channel >= keys, KEY, 0))
    return (channel - first) // size * GROUP + offset + (channel - first) % size


@triton.jit(do_not_specialize=_VARIES)
def conv_update_kernel(
    x,  # [rows, ...]: the inputs, in groups if GROUP is not 0
    weight,  # [CHANNELS, TAPS]
    bias,  # [CHANNELS]
    states,  # [slots + 1, CHANNELS, TAPS], the last inputs
    slots,
    output,  # [rows, CHANNELS], contiguous
    stride_x,  # elements from one row to the next
    padding_slot,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
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
    """Program (row, part): a causal convolution of each channel over its last TAPS inputs.

    ACTIVATES: SiLU follows. GATES: a row of `x` has two gates and then the inputs; these are
    multiplied by the first gate, and the result by the second.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < CHANNELS
    slot = tl.load(slots + row)
    has_state = channels < tl.where(slot == padding_slot, 0, CHANNELS)
    dtype: tl.constexpr = weight.dtype.element_ty
    x += row * stride_x
    if GATES:
        gate = tl.load(x + channels, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(x + 2 * CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
        value = (gate * value).to(dtype)
    elif GROUP > 0:
        columns = grouped_column(channels, GROUP, GROUPS, KEY, VALUE)
        value = tl.load(x + columns, mask=inside, other=0.0).to(dtype)
    else:
        value = tl.load(x + channels, mask=inside, other=0.0).to(dtype)
    state = states + (slot * CHANNELS + channels) * TAPS
    total = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(TAPS):
        if tap < TAPS - 1:  # a channel's numbers are in one thread, which moves them one by one
            tapped = tl.load(state + tap + 1, mask=has_state, other=0.0).to(dtype)
        else:
            tapped = value
        scale = tl.load(weight + channels * TAPS + tap, mask=inside, other=0.0).to(tl.float32)
        total += tapped.to(tl.float32) * scale
        tl.store(state + tap, tapped.to(states.dtype.element_ty), mask=has_state)
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)
    total = total.to(dtype).to(tl.float32)
    if ACTIVATES:
        total = silu(total)
    if GATES:
        second = tl.load(x + CHANNELS + channels, mask=inside, other=0.0).to(tl.float32)
        total = second * total
    tl.store(output + row * CHANNELS + channels, total.to(output.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_VARIES)
def delta_update_kernel(
    qkv,  # [rows, 2 * KEY_HEADS * DK + HEADS * DV], contiguous
    z,  # [rows, ...]: the gate of the output, [HEADS, DV] in groups
    a,  # [rows, ...]: what the decay follows from, [HEADS] in groups
    b,  # [rows, ...]: how much is written, as `a`
    log_decay,  # [HEADS]
    a_bias,  # [HEADS]
    weight,  # [DV], of the norm
    states,  # [slots + 1, HEADS, DK, DV]
    slots,
    output,  # [rows, HEADS * DV], contiguous
    stride_z,
    stride_a,
    stride_b,
    padding_slot,
    epsilon,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    Z_GROUP: tl.constexpr,
    AB_GROUP: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (row, head): the gated delta rule, then the gated norm of the head.

    The heads that share a key are a group. Z_GROUP, AB_GROUP: numbers from one group to the next.
    """
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // (HEADS // KEY_HEADS)
    member = head % (HEADS // KEY_HEADS)
    keys = tl.arange(0, BLOCK_K)
    columns = tl.arange(0, BLOCK_V)
    is_key = keys < DK
    is_column = columns < DV
    qkv += row * (2 * KEY_HEADS * DK + HEADS * DV)
    query = tl.load(qkv + group * DK + keys, mask=is_key, other=0.0).to(tl.float32)
    key = tl.load(qkv + (KEY_HEADS + group) * DK + keys, mask=is_key, other=0.0).to(tl.float32)
    value = tl.load(qkv + 2 * KEY_HEADS * DK + head * DV + columns, mask=is_column, other=0.0)
    query *= 1.0 / tl.sqrt(tl.sum(query * query, 0) + 1e-6) / tl.sqrt(DK * 1.0)
    key *= 1.0 / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
    time = tl.load(a + row * stride_a + group * AB_GROUP + member).to(tl.float32)
    time = softplus(time + tl.load(a_bias + head).to(tl.float32))
    decay = tl.exp(-tl.exp(tl.load(log_decay + head).to(tl.float32)) * time)
    strength = tl.load(b + row * stride_b + group * AB_GROUP + member)
    strength = (1.0 / (1.0 + tl.exp(-strength.to(tl.float32)))).to(strength.dtype).to(tl.float32)

    slot = tl.load(slots + row)
    places = states + (slot * HEADS + head) * DK * DV + keys[:, None] * DV + columns[None, :]
    has_state = (keys < tl.where(slot == padding_slot, 0, DK))[:, None] & is_column[None, :]
    state = tl.load(places, mask=has_state, other=0.0).to(tl.float32) * decay
    known = tl.sum(state * key[:, None], 0)
    state += key[:, None] * ((value.to(tl.float32) - known) * strength)[None, :]
    tl.store(places, state.to(states.dtype.element_ty), mask=has_state)
    dtype: tl.constexpr = output.dtype.element_ty
    result = tl.sum(state * query[:, None], 0).to(dtype).to(tl.float32)

    result *= 1.0 / tl.sqrt(tl.sum(result * result, 0) / DV + epsilon)
    scale = tl.load(weight + columns, mask=is_column, other=0.0)
    result = (result.to(dtype).to(tl.float32) * scale.to(tl.float32)).to(scale.dtype)
    gates = z + row * stride_z + group * Z_GROUP + member * DV + columns
    gate = tl.load(gates, mask=is_column, other=0.0).to(tl.float32)
    result = result.to(tl.float32) * silu(gate)
    tl.store(output + (row * HEADS + head) * DV + columns, result.to(dtype), mask=is_column)


@triton.jit(do_not_specialize=_VARIES)
def mamba_update_kernel(
    xbc,  # [rows, HEADS * SIZE + 2 * GROUPS * STATE], contiguous: inputs, B and C
    dt,  # [rows, HEADS]: time steps
    log_decay,  # [HEADS]
    dt_bias,  # [HEADS]
    skip,  # [HEADS]: how much of the input is added to the output
    states,  # [slots + 1, HEADS, SIZE, STATE]
    slots,
    output,  # [rows, HEADS * SIZE], contiguous
    stride_dt,
    padding_slot,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (row, head): the selective state space of Mamba 2."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // (HEADS // GROUPS)
    inputs = tl.arange(0, BLOCK_SIZE)
    columns = tl.arange(0, BLOCK_STATE)
    is_input = inputs < SIZE
    is_column = columns < STATE
    xbc += row * (HEADS * SIZE + 2 * GROUPS * STATE)
    x = tl.load(xbc + head * SIZE + inputs, mask=is_input, other=0.0).to(tl.float32)
    b = xbc + HEADS * SIZE + group * STATE + columns
    c = tl.load(b + GROUPS * STATE, mask=is_column, other=0.0).to(tl.float32)
    b = tl.load(b, mask=is_column, other=0.0).to(tl.float32)
    time = tl.load(dt + row * stride_dt + head).to(tl.float32)
    time = softplus(time + tl.load(dt_bias + head).to(tl.float32))
    decay = tl.exp(-tl.exp(tl.load(log_decay + head).to(tl.float32)) * time)

    slot = tl.load(slots + row)
    places = states + (slot * HEADS + head) * SIZE * STATE
    places += inputs[:, None] * STATE + columns[None, :]
    has_state = (inputs < tl.where(slot == padding_slot, 0, SIZE))[:, None] & is_column[None, :]
    state = tl.load(places, mask=has_state, other=0.0).to(tl.float32) * decay
    state += x[:, None] * (time * b)[None, :]
    tl.store(places, state.to(states.dtype.element_ty), mask=has_state)
    result = tl.sum(state * c[None, :], 1) + x * tl.load(skip + head).to(tl.float32)
    result = result.to(output.dtype.element_ty)
    tl.store(output + (row * HEADS + head) * SIZE + inputs, result, mask=is_input)


@triton.jit
def gated_norm_kernel(
    x,  # [rows, GROUPS * SIZE], contiguous
    gate,  # [rows, GROUPS * SIZE]
    weight,  # [GROUPS * SIZE]
    output,  # [rows, GROUPS * SIZE], contiguous
    stride_gate,
    epsilon,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (row, group): x * SiLU(gate), then the RMS norm of the group, rounded and scaled."""
    wait_for_inputs(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    columns += tl.program_id(1) * SIZE
    values = tl.load(x + row * GROUPS * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    values *= silu(
        tl.load(gate + row * stride_gate + columns, mask=inside, other=0.0).to(tl.float32)
    )
    values *= 1.0 / tl.sqrt(tl.sum(values * values, 0) / SIZE + epsilon)
    dtype: tl.constexpr = output.dtype.element_ty
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = values.to(dtype).to(tl.float32) * scale
    tl.store(output + row * GROUPS * SIZE + columns, result.to(dtype), mask=inside)
