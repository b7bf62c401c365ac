"""Triton kernels of states that are scanned, for the packed tokens of a step with prompts.

They continue the states of all sequences where they lie, in tiles of `ROWS` packed
tokens. `slots` int64[N], `query_start` int32[N + 1] and `context_lens` int32[N] say of each
sequence where its state lies, which tokens are its own, and how many tokens it has after the step.
If it has no others, it begins with zeros. So does padding, in the slot `padding_slot`, and it
stores no state. `sequences` int32[T] says of each token whose it is.
"""

import triton
import triton.language as tl

from stonechat_models.backends.transformers.fused.state_kernels import silu, softplus
from stonechat_models.hardware.dependent_launch import wait_for_inputs

ROWS = tl.constexpr(64)
"""Packed tokens of a tile."""
_VARIES = ("padding_slot", "num_tokens")


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """The product of float32 numbers. Those that were half precision are exact in TF32 too."""
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def log_decay_of(time, bias, rate):
    """The logarithm of a step's decay: float32, at most 0."""
    return -tl.exp(rate.to(tl.float32)) * softplus(time.to(tl.float32) + bias.to(tl.float32))


@triton.jit
def unit_inverse(lower, PRECISION: tl.constexpr):
    """The inverse of I + `lower` [ROWS, ROWS], where `lower` is 0 on and above the diagonal.

    Blocks of 16 rows are solved by substitution, which stays exact for keys that repeat. With D
    the blocks on the diagonal and L those below, X = D⁻¹ - D⁻¹ L X, one block of rows after the
    other.
    """
    rows = tl.arange(0, ROWS)
    row, column = rows[:, None], rows[None, :]
    is_block = row // 16 == column // 16
    inverse = tl.where(row == column, 1.0, 0.0)
    for pivot in range(15):
        factors = tl.sum(tl.where(is_block & (column % 16 == pivot), lower, 0.0), 1)
        solved = tl.sum(tl.where(row % 16 == pivot, inverse, 0.0), 0)
        inverse -= tl.where(is_block, factors[:, None] * solved[None, :], 0.0)
    below = dot(inverse, tl.where(is_block, 0.0, lower), PRECISION)
    whole = inverse
    for _ in range(ROWS // 16 - 1):
        whole = inverse - dot(below, whole, PRECISION)
    return whole


@triton.jit(do_not_specialize=_VARIES)
def delta_solve_kernel(
    qkv,  # [T, 2 * KEY_HEADS * DK + HEADS * DV], contiguous
    a,  # as in `delta_update_kernel`; so are the next three
    b,
    log_decay,
    a_bias,
    sequences,
    values,  # float32[T, HEADS, DV]: the results
    keys,  # float32[T, HEADS, DK]
    stride_a,
    stride_b,
    num_tokens,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    AB_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, head): what the tokens of a tile add to a state S, as if at once.

    That is `values` - `keys` S (arXiv 2412.06464, section 3.3), where S is the state before the
    tile, or before the sequence if it begins in the tile.
    """
    wait_for_inputs(EARLY)
    tile = tl.program_id(0).to(tl.int64) * ROWS
    head = tl.program_id(1)
    group = head // (HEADS // KEY_HEADS)
    member = head % (HEADS // KEY_HEADS)
    rows = tl.arange(0, ROWS)
    is_token = rows < num_tokens - tile
    sequence = tl.load(sequences + tile + rows, mask=is_token, other=-1)
    is_before = (rows[:, None] > rows[None, :]) & (sequence[:, None] == sequence[None, :])

    ab = group * AB_GROUP + member
    time = tl.load(a + (tile + rows) * stride_a + ab, mask=is_token, other=0.0)
    decay = log_decay_of(time, tl.load(a_bias + head), tl.load(log_decay + head))
    # Each sequence has sums of its own, so that a neighbour's decays cost no digits.
    sums = decay + tl.sum(tl.where(is_before, decay[None, :], 0.0), 1)
    strength = tl.load(b + (tile + rows) * stride_b + ab, mask=is_token, other=0.0)
    strength = (1.0 / (1.0 + tl.exp(-strength.to(tl.float32)))).to(strength.dtype).to(tl.float32)

    width: tl.constexpr = 2 * KEY_HEADS * DK + HEADS * DV
    qkv += tile * width
    columns = tl.arange(0, BLOCK_K)
    inside = is_token[:, None] & (columns < DK)[None, :]
    places = rows[:, None] * width + (KEY_HEADS + group) * DK + columns[None, :]
    key = tl.load(qkv + places, mask=inside, other=0.0).to(tl.float32)
    scale = unit_scale(key)
    lower = dot(key, tl.trans(key), PRECISION) * scale[None, :] * (scale * strength)[:, None]
    lower *= tl.exp(tl.where(is_before, sums[:, None] - sums[None, :], float("-inf")))
    lower = tl.where(is_before, lower, 0.0)
    written = strength * scale * tl.exp(sums)
    # Products have the rows of all sequences. What is not finite must stay in those of its own.
    broken = strength - strength + written - written + tl.sum(lower - lower, 1)
    inverse = unit_inverse(finite(lower), PRECISION)

    result = dot(inverse * finite(written)[None, :], finite(key), PRECISION)
    result += broken[:, None] + tl.sum(key - key, 1)[:, None]
    places = rows[:, None] * (HEADS * DK) + head * DK + columns[None, :]
    tl.store(keys + tile * (HEADS * DK) + places, result, mask=inside)
    columns = tl.arange(0, BLOCK_V)
    inside = is_token[:, None] & (columns < DV)[None, :]
    places = rows[:, None] * width + 2 * KEY_HEADS * DK + head * DV + columns[None, :]
    value = tl.load(qkv + places, mask=inside, other=0.0).to(tl.float32)
    result = dot(inverse * finite(strength)[None, :], finite(value), PRECISION)
    result += broken[:, None] + tl.sum(value - value, 1)[:, None]
    places = rows[:, None] * (HEADS * DV) + head * DV + columns[None, :]
    tl.store(values + tile * (HEADS * DV) + places, result, mask=inside)


@triton.jit
def finite(x):
    """`x`, with 0 for numbers that are not finite."""
    return tl.where(x - x == 0.0, x, 0.0)


@triton.jit
def unit_scale(x):
    """What makes the rows of `x` [ROWS, K] as long as 1."""
    return 1.0 / tl.sqrt(tl.sum(x * x, 1) + 1e-6)


@triton.jit(do_not_specialize=_VARIES)
def scores_kernel(
    x,  # [T, WIDTH], contiguous: queries from column QUERY on, and keys from KEY on
    scores,  # float32[T, GROUPS, ROWS]: the result
    num_tokens,
    WIDTH: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    GROUPS: tl.constexpr,
    DK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IS_UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile, group of heads): the products of each query with all keys of its tile.

    IS_UNIT: queries and keys are first scaled to length 1, and queries then by 1 / sqrt(DK).
    """
    wait_for_inputs(EARLY)
    tile = tl.program_id(0).to(tl.int64) * ROWS
    group = tl.program_id(1)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    is_token = rows < num_tokens - tile
    inside = is_token[:, None] & (columns < DK)[None, :]
    places = x + tile * WIDTH + rows[:, None] * WIDTH + group * DK + columns[None, :]
    key = tl.load(places + KEY, mask=inside, other=0.0).to(tl.float32)
    query = tl.load(places + QUERY, mask=inside, other=0.0).to(tl.float32)
    result = dot(query, tl.trans(key), PRECISION)
    if IS_UNIT:
        scale = unit_scale(query) / tl.sqrt(DK * 1.0)
        result *= scale[:, None] * unit_scale(key)[None, :]
    places = scores + tile * (GROUPS * ROWS) + rows[:, None] * (GROUPS * ROWS) + group * ROWS
    tl.store(places + rows[None, :], result, mask=is_token[:, None])


@triton.jit
def place_of(sequence, slots, query_start, context_lens, padding_slot):
    """A sequence's first token, its end, its slot, and whether its state there is to be read."""
    first = tl.load(query_start + sequence).to(tl.int64)
    end = tl.load(query_start + sequence + 1).to(tl.int64)
    slot = tl.load(slots + sequence)
    has_past = (tl.load(context_lens + sequence) > end - first) & (slot != padding_slot)
    return first, end, slot, has_past


@triton.jit
def scan_tile(
    state,  # float32[K, V]
    value,  # float32[ROWS, V], 0 for tokens of other sequences
    decay,  # float32[ROWS]: logarithms, 0 for tokens of other sequences
    scores,  # where a tile's scores are, [ROWS, ROWS]
    query,  # where its queries are, [ROWS, K]
    key,  # and its keys
    is_own,  # which of its tokens are of the sequence, [ROWS]
    is_key,  # which columns are some of a key, [K]
    DK: tl.constexpr,
    IS_UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the outputs [ROWS, V] of a tile of one sequence, and the state after it.

    A token's state is the one before, decayed, plus the outer product of its key and value. Each
    part is loaded when it is needed, for there are not registers for all. IS_UNIT: see
    `scores_kernel`.
    """
    rows = tl.arange(0, ROWS)
    inside = is_own[:, None] & is_key[None, :]
    sums, total = tl.cumsum(decay, 0), tl.sum(decay, 0)
    is_seen = rows[:, None] >= rows[None, :]
    weights = tl.exp(tl.where(is_seen, sums[:, None] - sums[None, :], float("-inf")))
    is_seen = is_seen & is_own[:, None] & is_own[None, :]
    weights *= tl.load(scores, mask=is_seen, other=0.0)
    seen = dot(weights, value, PRECISION)
    read = tl.load(query, mask=inside, other=0.0).to(tl.float32)
    scale = tl.exp(sums)
    if IS_UNIT:
        scale *= unit_scale(read) / tl.sqrt(DK * 1.0)
    output = seen + dot(read, state, PRECISION) * scale[:, None]
    written = tl.load(key, mask=inside, other=0.0).to(tl.float32)
    scale = tl.exp(total - sums)
    if IS_UNIT:
        scale *= unit_scale(written)
    added = dot(tl.trans(written), value * scale[:, None], PRECISION)
    return output, state * tl.exp(total) + added


@triton.jit(do_not_specialize=_VARIES)
def delta_scan_kernel(
    qkv,  # as in `delta_solve_kernel`; so are the next five
    a,
    log_decay,
    a_bias,
    values,
    keys,
    scores,  # those of `scores_kernel`
    states,  # [slots + 1, HEADS, DK, DV]
    slots,
    query_start,
    context_lens,
    output,  # [T, HEADS * DV], contiguous
    stride_a,
    padding_slot,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    AB_GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (sequence, head, part of the values): the gated delta rule, tile after tile."""
    wait_for_inputs(EARLY)
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    group = head // (HEADS // KEY_HEADS)
    ab = group * AB_GROUP + head % (HEADS // KEY_HEADS)
    first, end, slot, has_past = place_of(sequence, slots, query_start, context_lens, padding_slot)

    key_columns = tl.arange(0, BLOCK_K)
    columns = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    is_key = key_columns < DK
    is_column = columns < DV
    places = states + (slot * HEADS + head) * DK * DV
    places += key_columns[:, None] * DV + columns[None, :]
    is_state = (key_columns < tl.where(has_past, DK, 0))[:, None] & is_column[None, :]
    state = tl.load(places, mask=is_state, other=0.0).to(tl.float32)
    bias, rate = tl.load(a_bias + head), tl.load(log_decay + head)
    width: tl.constexpr = 2 * KEY_HEADS * DK + HEADS * DV
    rows = tl.arange(0, ROWS)
    key_places = rows[:, None] * (HEADS * DK) + head * DK + key_columns[None, :]
    query_places = rows[:, None] * width + group * DK + key_columns[None, :]
    value_places = rows[:, None] * (HEADS * DV) + head * DV + columns[None, :]
    score_places = rows[:, None] * (KEY_HEADS * ROWS) + group * ROWS + rows[None, :]
    for begin in range(first // ROWS * ROWS, end, ROWS):
        is_own = (rows >= first - begin) & (rows < end - begin)
        has_key = is_own[:, None] & is_key[None, :]
        has_value = is_own[:, None] & is_column[None, :]
        known = tl.load(keys + begin * (HEADS * DK) + key_places, mask=has_key, other=0.0)
        tile_values = values + begin * (HEADS * DV)
        value = tl.load(tile_values + value_places, mask=has_value, other=0.0)
        value -= dot(known, state, PRECISION)
        time = tl.load(a + (begin + rows) * stride_a + ab, mask=is_own, other=0.0)
        decay = tl.where(is_own, log_decay_of(time, bias, rate), 0.0)
        query = qkv + begin * width + query_places
        result, state = scan_tile(
            state,
            value,
            decay,
            scores + begin * (KEY_HEADS * ROWS) + score_places,
            query,
            query + KEY_HEADS * DK,
            is_own,
            is_key,
            DK,
            True,
            PRECISION,
        )
        result = result.to(output.dtype.element_ty)
        tl.store(output + begin * (HEADS * DV) + value_places, result, mask=has_value)
    is_state = (key_columns < tl.where(slot == padding_slot, 0, DK))[:, None] & is_column[None, :]
    tl.store(places, state.to(states.dtype.element_ty), mask=is_state)


@triton.jit(do_not_specialize=_VARIES)
def norm_gate_kernel(
    x,  # [T, HEADS * DV], contiguous: the input, and the output
    z,  # as in `delta_update_kernel`; so are `weight` and Z_GROUP
    weight,
    stride_z,
    num_tokens,
    epsilon,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DV: tl.constexpr,
    BLOCK_V: tl.constexpr,
    Z_GROUP: tl.constexpr,
    TILE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (tile of tokens, head): the RMS norm of the head, times SiLU(z)."""
    wait_for_inputs(EARLY)
    rows = (tl.program_id(0) * TILE + tl.arange(0, TILE)).to(tl.int64)[:, None]
    head = tl.program_id(1)
    columns = tl.arange(0, BLOCK_V)[None, :]
    inside = (rows < num_tokens) & (columns < DV)
    dtype: tl.constexpr = x.dtype.element_ty
    places = x + (rows * HEADS + head) * DV + columns
    result = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    result *= 1.0 / tl.sqrt(tl.sum(result * result, 1) / DV + epsilon)[:, None]
    scale = tl.load(weight + columns, mask=columns < DV, other=0.0)
    result = (result.to(dtype).to(tl.float32) * scale.to(tl.float32)).to(scale.dtype)
    group = head // (HEADS // KEY_HEADS)
    member = head % (HEADS // KEY_HEADS)
    gates = z + rows * stride_z + group * Z_GROUP + member * DV + columns
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    tl.store(places, (result.to(tl.float32) * silu(gate)).to(dtype), mask=inside)


@triton.jit(do_not_specialize=_VARIES)
def mamba_scan_kernel(
    xbc,  # [T, HEADS * SIZE + 2 * GROUPS * STATE], contiguous: inputs, B and C
    dt,  # [T, HEADS]: time steps
    log_decay,  # [HEADS]; so are the next two, as in `mamba_update_kernel`
    dt_bias,
    skip,
    scores,  # those of `scores_kernel`, of C and B
    states,  # [slots + 1, HEADS, SIZE, STATE]
    slots,
    query_start,
    context_lens,
    output,  # [T, HEADS * SIZE], contiguous
    stride_dt,
    padding_slot,
    shortest,
    longest,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    STATE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
    PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program (sequence, head, part of the inputs): the state space of Mamba 2, tile after tile.

    Time steps are between `shortest` and `longest`.
    """
    wait_for_inputs(EARLY)
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    first, end, slot, has_past = place_of(sequence, slots, query_start, context_lens, padding_slot)

    columns = tl.arange(0, BLOCK_STATE)
    inputs = tl.program_id(2) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    is_column = columns < STATE
    is_input = inputs < SIZE
    places = states + (slot * HEADS + head) * SIZE * STATE
    places += columns[:, None] + inputs[None, :] * STATE
    is_state = (columns < tl.where(has_past, STATE, 0))[:, None] & is_input[None, :]
    state = tl.load(places, mask=is_state, other=0.0).to(tl.float32)
    bias, rate = tl.load(dt_bias + head), tl.load(log_decay + head)
    skipped = tl.load(skip + head).to(tl.float32)
    width: tl.constexpr = HEADS * SIZE + 2 * GROUPS * STATE
    rows = tl.arange(0, ROWS)
    group = head // (HEADS // GROUPS)
    b_places = rows[:, None] * width + group * STATE + columns[None, :]
    score_places = rows[:, None] * (GROUPS * ROWS) + group * ROWS + rows[None, :]
    input_places = rows[:, None] * width + head * SIZE + inputs[None, :]
    output_places = rows[:, None] * (HEADS * SIZE) + head * SIZE + inputs[None, :]
    for begin in range(first // ROWS * ROWS, end, ROWS):
        is_own = (rows >= first - begin) & (rows < end - begin)
        has_input = is_own[:, None] & is_input[None, :]
        tile_xbc = xbc + begin * width
        b = tile_xbc + HEADS * SIZE + b_places
        x = tl.load(tile_xbc + input_places, mask=has_input, other=0.0).to(tl.float32)
        time = tl.load(dt + (begin + rows) * stride_dt + head, mask=is_own, other=0.0)
        time = time.to(tl.float32)
        time = softplus(time + bias.to(tl.float32))
        time = tl.minimum(tl.maximum(time, shortest), longest)
        decay = tl.where(is_own, -tl.exp(rate.to(tl.float32)) * time, 0.0)
        result, state = scan_tile(
            state,
            x * time[:, None],
            decay,
            scores + begin * (GROUPS * ROWS) + score_places,
            b + GROUPS * STATE,
            b,
            is_own,
            is_column,
            STATE,
            False,
            PRECISION,
        )
        result = (result + x * skipped).to(output.dtype.element_ty)
        tl.store(output + begin * (HEADS * SIZE) + output_places, result, mask=has_input)
    is_state = (columns < tl.where(slot == padding_slot, 0, STATE))[:, None] & is_input[None, :]
    tl.store(places, state.to(states.dtype.element_ty), mask=is_state)
