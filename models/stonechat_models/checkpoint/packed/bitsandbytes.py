"""The 4-bit format of bitsandbytes: codes into a table of 16 values, and a scale for each block."""

import json
from dataclasses import dataclass
from typing import Any

import torch

from stonechat_models.checkpoint.packed.layouts import Layout, MisfitError, Parts


def read_state(parts: Parts) -> dict[str, Any]:
    """Return the record that is stored beside the weights: their shape and the sizes of blocks."""
    state = json.loads(bytes(parts["state"].tolist()))
    if not isinstance(state, dict) or "shape" not in state:
        raise MisfitError("the state of its weights has no shape")
    return state


@dataclass(frozen=True, slots=True)
class TableLayout(Layout):
    """Blocks of consecutive weights, over the ends of rows. The scales may be quantised again."""

    def stored_shape(self, parts: Parts) -> tuple[int, ...] | None:
        return tuple(read_state(parts)["shape"])

    def floats(self, parts: Parts, rows: torch.Tensor) -> torch.Tensor:
        state = read_state(parts)
        k, block = int(state["shape"][-1]), int(state["blocksize"])
        place = rows[:, None] * k + torch.arange(k)
        packed = parts["weight"].flatten()[place // 2]
        codes = torch.where(place % 2 == 0, packed >> 4, packed & 15)
        return parts["quant_map"][codes.long()] * self._scales(parts, state)[place // block]

    @staticmethod
    def _scales(parts: Parts, state: dict[str, Any]) -> torch.Tensor:
        scales = parts["absmax"]
        if "nested_absmax" not in parts:
            return scales.float()
        nested = parts["nested_absmax"].repeat_interleave(int(state["nested_blocksize"]))
        values = parts["nested_quant_map"][scales.long()] * nested[: scales.numel()]
        return values + float(state["nested_offset"])
