"""Recurrent layers with few kernels, on the states in the pool."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton

from stonechat_models.backends.transformers.fused.conv_kernels import (
    conv_keep_kernel,
    conv_packed_kernel,
)
from stonechat_models.backends.transformers.fused.scan_kernels import (
    ROWS,
    delta_scan_kernel,
    delta_solve_kernel,
    mamba_scan_kernel,
    norm_gate_kernel,
    scores_kernel,
)
from stonechat_models.backends.transformers.fused.state_kernels import (
    conv_update_kernel,
    delta_update_kernel,
    gated_norm_kernel,
    mamba_update_kernel,
)
from stonechat_models.backends.transformers.slot_states import (
    SlotMixer,
    SlotStates,
    StepSequences,
)
from stonechat_models.hardware.dependent_launch import launch_settings

CHANNELS_AT_ONCE = 128
"""Channels of a convolution that one program handles, one a thread. Threads share no channel, since
nothing orders what they load and store."""
TOKENS_AT_ONCE = 16
"""Packed tokens of which one program computes a convolution, or a head's norm."""
COLUMNS_AT_ONCE = 16
"""Columns of a head's state that one program scans a sequence for."""
SCAN_WARPS = 8
TILE_ROWS: int = ROWS.value


@dataclass(frozen=True, slots=True)
class Groups:
    """How a projection orders the channels of a convolution: by heads of keys.

    Each of `count` groups has `key` numbers of a query, as many of a key, `value` numbers of
    values, and others: `size` in all.
    """

    count: int
    key: int
    value: int
    size: int


class DeltaParts(NamedTuple):
    """The projections of a layer with the gated delta rule, [T, ...], as the kernels take them."""

    mixed: torch.Tensor
    """Queries, keys and values after the convolution."""
    z: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    sizes: dict[str, int]
    z_group: int


IN_ORDER = Groups(count=1, key=1, value=1, size=0)


class SlotShortConv(SlotMixer):
    """The gated short convolution of LFM2."""

    def mix(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        layer: Any = self.original
        mixed = convolved(layer.in_proj(rows), layer.conv, states, activates=False, gates=True)
        output: torch.Tensor = layer.out_proj(mixed)
        return output


class SlotDeltaNet(SlotMixer):
    """The gated delta rule of Qwen3-Next and Qwen3.5."""

    def mix(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        layer: Any = self.original
        num_heads, num_keys = layer.num_v_heads, layer.num_k_heads
        key_size, value_size = layer.head_k_dim, layer.head_v_dim
        per_key = num_heads // num_keys
        if hasattr(layer, "in_proj_qkvz"):  # of Qwen3-Next
            qkv, ba = layer.in_proj_qkvz(rows), layer.in_proj_ba(rows)
            size = 2 * key_size + 2 * per_key * value_size
            groups = Groups(num_keys, key_size, per_key * value_size, size)
            z, z_group = qkv[:, size - per_key * value_size :], size
            b, a, ab_group = ba, ba[:, per_key:], 2 * per_key
        else:
            qkv, groups = layer.in_proj_qkv(rows), IN_ORDER
            z, z_group = layer.in_proj_z(rows), per_key * value_size
            b, a, ab_group = layer.in_proj_b(rows), layer.in_proj_a(rows), per_key
        mixed = convolved(qkv, layer.conv1d, states, activates=True, groups=groups)
        sizes = {"HEADS": num_heads, "KEY_HEADS": num_keys, "DK": key_size, "DV": value_size}
        parts = DeltaParts(mixed, z, a, b, {**sizes, "AB_GROUP": ab_group}, z_group)
        run = delta_decoded if states.sequences.of_tokens is None else delta_scanned
        projected: torch.Tensor = layer.out_proj(run(layer, parts, states))
        return projected


class SlotMamba(SlotMixer):
    """The state space of Mamba 2."""

    def mix(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        layer: Any = self.original
        num_heads, size, state_size = layer.num_heads, layer.head_dim, layer.ssm_state_size
        widths = [layer.intermediate_size, layer.conv_dim, num_heads]
        gate, xbc, dt = layer.in_proj(rows).split(widths, dim=-1)
        mixed = convolved(xbc, layer.conv1d, states, activates=True)
        assert states.recurrent is not None
        output = rows.new_empty(len(rows), layer.intermediate_size)
        weights = (layer.A_log, layer.dt_bias, layer.D)
        sizes = {
            "HEADS": num_heads,
            "GROUPS": layer.n_groups,
            "SIZE": size,
            "STATE": state_size,
            "BLOCK_STATE": triton.next_power_of_2(state_size),
        }
        sequences = states.sequences
        if sequences.of_tokens is None:
            block_size = triton.next_power_of_2(size)
            mamba_update_kernel[(len(rows), num_heads)](
                mixed,
                dt,
                *weights,
                states.recurrent,
                sequences.slots,
                output,
                dt.stride(0),
                states.padding_slot,
                **sizes,
                BLOCK_SIZE=block_size,
                num_warps=tile_warps(block_size * sizes["BLOCK_STATE"]),
                **launch_settings(rows.device),
            )
        else:
            first = layer.intermediate_size
            columns = {"QUERY": first + layer.n_groups * state_size, "KEY": first}
            scores = scored(mixed, layer.n_groups, state_size, IS_UNIT=False, **columns)
            grid = (len(sequences.slots), num_heads, triton.cdiv(size, COLUMNS_AT_ONCE))
            mamba_scan_kernel[grid](
                mixed,
                dt,
                *weights,
                scores,
                states.recurrent,
                *places_of(sequences),
                output,
                dt.stride(0),
                states.padding_slot,
                *map(float, layer.time_step_limit),  # transformers heeds it in prompts only
                **{**sizes, "BLOCK_STATE": max(16, sizes["BLOCK_STATE"])},
                BLOCK_SIZE=COLUMNS_AT_ONCE,
                **scan_settings(rows),
            )
        group_size = layer.norm.group_size
        normed = torch.empty_like(output)
        block = triton.next_power_of_2(group_size)
        gated_norm_kernel[(len(rows), layer.intermediate_size // group_size)](
            output,
            gate,
            layer.norm.weight,
            normed,
            gate.stride(0),
            layer.norm.variance_epsilon,
            GROUPS=layer.intermediate_size // group_size,
            SIZE=group_size,
            BLOCK=block,
            num_warps=max(1, min(8, block // 256)),
            **launch_settings(rows.device),
        )
        projected: torch.Tensor = layer.out_proj(normed)
        return projected


def convolved(
    x: torch.Tensor,
    conv: Any,
    states: SlotStates,
    *,
    activates: bool,
    gates: bool = False,
    groups: Groups = IN_ORDER,
) -> torch.Tensor:
    """Map the inputs [T, ...] of a short convolution to [T, channels], and change its states.

    `activates`: SiLU follows. `gates`: a row has two gates and then the inputs. These are
    multiplied by the first gate, and the result by the second.
    """
    channels, taps = conv.weight.shape[0], conv.weight.shape[-1]
    output = x.new_empty(len(x), channels)
    weights = (conv.weight, conv.weight if conv.bias is None else conv.bias)
    parts = triton.cdiv(channels, CHANNELS_AT_ONCE)
    settings = {
        "CHANNELS": channels,
        "TAPS": taps,
        "BLOCK": CHANNELS_AT_ONCE,
        "GATES": gates,
        "GROUP": groups.size,
        "GROUPS": groups.count,
        "KEY": groups.key,
        "VALUE": groups.value,
        "num_warps": CHANNELS_AT_ONCE // 32,
        **launch_settings(x.device),
    }
    sequences, padding = states.sequences, states.padding_slot
    after = {"HAS_BIAS": conv.bias is not None, "ACTIVATES": activates}
    if sequences.of_tokens is None:
        conv_update_kernel[(len(x), parts)](
            x,
            *weights,
            states.conv,
            sequences.slots,
            output,
            x.stride(0),
            padding,
            **settings,
            **after,
        )
        return output
    places = places_of(sequences)
    conv_packed_kernel[(triton.cdiv(len(x), TOKENS_AT_ONCE), parts)](
        x,
        *weights,
        states.conv,
        *places,
        sequences.of_tokens,
        output,
        x.stride(0),
        padding,
        len(x),
        TILE=TOKENS_AT_ONCE,
        **settings,
        **after,
    )
    conv_keep_kernel[(len(sequences.slots), parts)](
        x, conv.weight, states.conv, *places, x.stride(0), padding, **settings
    )
    return output


def delta_decoded(layer: Any, parts: DeltaParts, states: SlotStates) -> torch.Tensor:
    """Return what the output projection takes, [N, HEADS * DV], for one token of each sequence."""
    mixed, z, a, b, sizes, z_group = parts
    assert states.recurrent is not None
    output = mixed.new_empty(len(mixed), sizes["HEADS"] * sizes["DV"])
    block_key, block_value = (triton.next_power_of_2(sizes[name]) for name in ("DK", "DV"))
    delta_update_kernel[(len(mixed), sizes["HEADS"])](
        mixed,
        z,
        a,
        b,
        layer.A_log,
        layer.dt_bias,
        layer.norm.weight,
        states.recurrent,
        states.sequences.slots,
        output,
        z.stride(0),
        a.stride(0),
        b.stride(0),
        states.padding_slot,
        layer.norm.variance_epsilon,
        **sizes,
        BLOCK_K=block_key,
        BLOCK_V=block_value,
        Z_GROUP=z_group,
        num_warps=tile_warps(block_key * block_value),
        **launch_settings(mixed.device),
    )
    return output


def delta_scanned(layer: Any, parts: DeltaParts, states: SlotStates) -> torch.Tensor:
    """As `delta_decoded`, for packed tokens [T, ...] of which a sequence may have many."""
    mixed, z, a, b, sizes, z_group = parts
    sequences, num_tokens = states.sequences, len(mixed)
    heads, value_size = sizes["HEADS"], sizes["DV"]
    assert states.recurrent is not None
    values = mixed.new_empty(num_tokens, heads, value_size, dtype=torch.float32)
    keys = mixed.new_empty(num_tokens, heads, sizes["DK"], dtype=torch.float32)
    output = mixed.new_empty(num_tokens, heads * value_size)
    weights = (layer.A_log, layer.dt_bias)
    block_key, block_value = (max(16, triton.next_power_of_2(sizes[n])) for n in ("DK", "DV"))
    delta_solve_kernel[(triton.cdiv(num_tokens, TILE_ROWS), heads)](
        mixed,
        a,
        b,
        *weights,
        sequences.of_tokens,
        values,
        keys,
        a.stride(0),
        b.stride(0),
        num_tokens,
        **sizes,
        BLOCK_K=block_key,
        BLOCK_V=block_value,
        **scan_settings(mixed),
    )
    columns = {"QUERY": 0, "KEY": sizes["KEY_HEADS"] * sizes["DK"]}
    scores = scored(mixed, sizes["KEY_HEADS"], sizes["DK"], IS_UNIT=True, **columns)
    grid = (len(sequences.slots), heads, triton.cdiv(value_size, COLUMNS_AT_ONCE))
    delta_scan_kernel[grid](
        mixed,
        a,
        *weights,
        values,
        keys,
        scores,
        states.recurrent,
        *places_of(sequences),
        output,
        a.stride(0),
        states.padding_slot,
        **sizes,
        BLOCK_K=block_key,
        BLOCK_V=COLUMNS_AT_ONCE,
        **scan_settings(mixed),
    )
    norm_gate_kernel[(triton.cdiv(num_tokens, TOKENS_AT_ONCE), heads)](
        output,
        z,
        layer.norm.weight,
        z.stride(0),
        num_tokens,
        layer.norm.variance_epsilon,
        HEADS=heads,
        KEY_HEADS=sizes["KEY_HEADS"],
        DV=value_size,
        BLOCK_V=block_value,
        Z_GROUP=z_group,
        TILE=TOKENS_AT_ONCE,
        **launch_settings(mixed.device),
    )
    return output


def scored(mixed: torch.Tensor, groups: int, size: int, **settings: int) -> torch.Tensor:
    """Return the products of queries and keys in each tile, float32[T, groups, ROWS]."""
    scores = mixed.new_empty(len(mixed), groups, TILE_ROWS, dtype=torch.float32)
    scores_kernel[(triton.cdiv(len(mixed), TILE_ROWS), groups)](
        mixed,
        scores,
        len(mixed),
        WIDTH=mixed.shape[1],
        GROUPS=groups,
        DK=size,
        BLOCK_K=max(16, triton.next_power_of_2(size)),
        **settings,
        **scan_settings(mixed),
    )
    return scores


def places_of(sequences: StepSequences) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the kernels for packed tokens read of the sequences."""
    return sequences.slots, sequences.query_start, sequences.context_lens


def scan_settings(rows: torch.Tensor) -> dict[str, Any]:
    """How the kernels that compute states in tiles are launched."""
    return {
        "PRECISION": precision_of(rows.dtype),
        "num_warps": SCAN_WARPS,
        "num_stages": 1,
        **launch_settings(rows.device),
    }


def precision_of(dtype: torch.dtype) -> str:
    """How float32 numbers are multiplied: as exactly as activations of `dtype` deserve."""
    return "tf32x3" if dtype is torch.float32 else "tf32"


def tile_warps(numbers: int) -> int:
    """Warps of a program with a state of so many numbers: at most 64 in a thread, up to 8 warps."""
    return max(1, min(8, numbers // 2048))
