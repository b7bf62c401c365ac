"""The 4-bit format of bitsandbytes: codes into a table of 16 values, and a scale for each block."""

from dataclasses import dataclass
from math import prod

import msgspec
import torch

from stonechat_models.checkpoint.packed.layouts import Layout, MisfitError, Parts


class State(msgspec.Struct, frozen=True):
    """The record that is stored beside the weights."""

    shape: tuple[int, ...]
    blocksize: int
    nested_blocksize: int = 0
    nested_offset: float = 0.0


def read_state(parts: Parts) -> State:
    """Return the record. Raises `MisfitError` if it is not valid."""
    try:
        state = msgspec.json.decode(bytes(parts["state"].flatten().tolist()), type=State)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise MisfitError(f"the state of its weights is not valid: {error}") from error
    if not state.shape or state.blocksize < 1:
        raise MisfitError("the state of its weights has no shape or no blocks")
    return state


@dataclass(frozen=True, slots=True)
class TableLayout(Layout):
    """Blocks of consecutive weights, over the ends of rows. The scales may be quantised again."""

    def stored_shape(self, parts: Parts) -> tuple[int, ...] | None:
        state, scales = read_state(parts), parts["absmax"].numel()
        check_covers(scales, state.blocksize, prod(state.shape))
        if "nested_absmax" in parts:
            check_covers(parts["nested_absmax"].numel(), state.nested_blocksize, scales)
        return state.shape

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        state = read_state(parts)
        k, block = state.shape[-1], state.blocksize
        place = rows[:, None] * k + torch.arange(k)
        packed = parts["weight"].flatten()[place // 2]
        codes = torch.where(place % 2 == 0, packed >> 4, packed & 15)
        return parts["quant_map"][codes.long()] * self._scales(parts, state)[place // block]

    @staticmethod
    def _scales(parts: Parts, state: State) -> torch.Tensor:
        scales = parts["absmax"]
        if "nested_absmax" not in parts:
            return scales.float()
        nested = parts["nested_absmax"].repeat_interleave(state.nested_blocksize)
        values = parts["nested_quant_map"][scales.long()] * nested[: scales.numel()]
        return values + state.nested_offset


def check_covers(num_blocks: int, block: int, count: int) -> None:
    """Raise `MisfitError` unless `count` numbers are so many blocks."""
    if block < 1 or -(-count // block) != num_blocks:
        raise MisfitError("the scales of its blocks do not fit its weights")
