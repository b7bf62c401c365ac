"""Recurrent layers that decode with few kernels, on the states in the pool."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from stonechat_models.backends.transformers.fused.state_kernels import (
    conv_update_kernel,
    delta_update_kernel,
    gated_norm_kernel,
    mamba_update_kernel,
)
from stonechat_models.backends.transformers.slot_states import SlotMixer, SlotStates
from stonechat_models.hardware.dependent_launch import launch_settings

CHANNELS_AT_ONCE = 128
"""Channels of a convolution that one program handles, one a thread. Threads share no channel, since
nothing orders what they load and store."""


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


IN_ORDER = Groups(count=1, key=1, value=1, size=0)


class SlotShortConv(SlotMixer):
    """The gated short convolution of LFM2."""

    def decode(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        layer: Any = self.original
        mixed = convolved(layer.in_proj(rows), layer.conv, states, activates=False, gates=True)
        output: torch.Tensor = layer.out_proj(mixed)
        return output


class SlotDeltaNet(SlotMixer):
    """The gated delta rule of Qwen3-Next and Qwen3.5."""

    def decode(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
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
        assert states.recurrent is not None
        output = rows.new_empty(len(rows), num_heads * value_size)
        block_key, block_value = (triton.next_power_of_2(n) for n in (key_size, value_size))
        delta_update_kernel[(len(rows), num_heads)](
            mixed,
            z,
            a,
            b,
            layer.A_log,
            layer.dt_bias,
            layer.norm.weight,
            states.recurrent,
            states.slots,
            output,
            z.stride(0),
            a.stride(0),
            b.stride(0),
            states.padding_slot,
            layer.norm.variance_epsilon,
            HEADS=num_heads,
            KEY_HEADS=num_keys,
            DK=key_size,
            DV=value_size,
            BLOCK_K=block_key,
            BLOCK_V=block_value,
            Z_GROUP=z_group,
            AB_GROUP=ab_group,
            num_warps=tile_warps(block_key * block_value),
            **launch_settings(rows.device),
        )
        projected: torch.Tensor = layer.out_proj(output)
        return projected


class SlotMamba(SlotMixer):
    """The state space of Mamba 2."""

    def decode(self, rows: torch.Tensor, states: SlotStates) -> torch.Tensor:
        layer: Any = self.original
        num_heads, size, state_size = layer.num_heads, layer.head_dim, layer.ssm_state_size
        sizes = [layer.intermediate_size, layer.conv_dim, num_heads]
        gate, xbc, dt = layer.in_proj(rows).split(sizes, dim=-1)
        mixed = convolved(xbc, layer.conv1d, states, activates=True)
        assert states.recurrent is not None
        output = rows.new_empty(len(rows), layer.intermediate_size)
        block_size, block_state = (triton.next_power_of_2(n) for n in (size, state_size))
        mamba_update_kernel[(len(rows), num_heads)](
            mixed,
            dt,
            layer.A_log,
            layer.dt_bias,
            layer.D,
            states.recurrent,
            states.slots,
            output,
            dt.stride(0),
            states.padding_slot,
            HEADS=num_heads,
            GROUPS=layer.n_groups,
            SIZE=size,
            STATE=state_size,
            BLOCK_SIZE=block_size,
            BLOCK_STATE=block_state,
            num_warps=tile_warps(block_size * block_state),
            **launch_settings(rows.device),
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
    """Map the inputs [N, ...] of a short convolution to [N, channels], and change its states.

    `activates`: SiLU follows. `gates`: a row has two gates and then the inputs. These are
    multiplied by the first gate, and the result by the second.
    """
    channels, taps = conv.weight.shape[0], conv.weight.shape[-1]
    output = x.new_empty(len(x), channels)
    conv_update_kernel[(len(x), triton.cdiv(channels, CHANNELS_AT_ONCE))](
        x,
        conv.weight,
        conv.weight if conv.bias is None else conv.bias,
        states.conv,
        states.slots,
        output,
        x.stride(0),
        states.padding_slot,
        CHANNELS=channels,
        TAPS=taps,
        BLOCK=CHANNELS_AT_ONCE,
        HAS_BIAS=conv.bias is not None,
        ACTIVATES=activates,
        GATES=gates,
        GROUP=groups.size,
        GROUPS=groups.count,
        KEY=groups.key,
        VALUE=groups.value,
        num_warps=CHANNELS_AT_ONCE // 32,
        **launch_settings(x.device),
    )
    return output


def tile_warps(numbers: int) -> int:
    """Warps of a program with a state of so many numbers: at most 64 in a thread, up to 8 warps."""
    return max(1, min(8, numbers // 2048))
