"""Cosines and sines of all positions, computed once at load and gathered in each step.

A model's own rotary module computes them anew in each step, in about nine kernels, and some kinds
of it wait for the device.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stonechat_models.backends.transformers.fused.parity_check import agree, output_of
from stonechat_models.backends.transformers.packing_check import probe_layers
from stonechat_models.backends.transformers.verify import random_prompts

logger = logging.getLogger(__name__)

NAME = "rotary_emb"
MAX_TABLE_BYTES = 128 << 20
"""Largest size of one table; 131072 positions of 128 angles in half precision take 64 MiB."""
CHUNK = 16384
"""Positions that the model's own module computes at a time."""
SPARE_ROWS = 64
"""Copies of the last row. A step that runs ahead may read beyond the last position, in vain."""
NUM_PROBED = 8
"""Tokens of the forward pass that shows how a rotary module is called."""


class RotaryTable(nn.Module):
    """Replaces a rotary module: maps positions [1, T] to cosines and sines, [1, T, angles] each.

    `tables` has for each type of layer (None, if there is only one) [positions, 2 * angles].
    """

    def __init__(self, tables: dict[str | None, torch.Tensor]) -> None:
        super().__init__()
        self._names = {layer_type: f"table_{i}" for i, layer_type in enumerate(tables)}
        for layer_type, table in tables.items():
            self.register_buffer(self._names[layer_type], table, persistent=False)

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x` is not used: models pass their hidden states."""
        table: torch.Tensor = getattr(self, self._names[layer_type])
        cosines, sines = F.embedding(position_ids, table).chunk(2, dim=-1)
        return cosines, sines


@torch.inference_mode()
def tabulate_rotary(module: nn.Module, max_model_len: int) -> int:
    """Replace the rotary modules of a causal model by tables of positions below `max_model_len`.

    Call after the last change of the module's dtype. A rotary module stays if it is called with
    other arguments than positions [1, T] and a type of layer, if its table would be too large, or
    if the table has other numbers. Returns the number of replaced modules.
    """
    names = [name for name, _ in module.named_modules() if name.rpartition(".")[2] == NAME]
    calls = _record_calls(module, names, min(max_model_len, NUM_PROBED)) if names else {}
    num_replaced = 0
    for name, recorded in calls.items():
        parent_name, _, child_name = name.rpartition(".")
        parent = module.get_submodule(parent_name)
        table = _table_module(parent.get_submodule(child_name), recorded, max_model_len)
        if table is not None:
            setattr(parent, child_name, table)
            num_replaced += 1
    return num_replaced


def _record_calls(
    module: nn.Module, names: list[str], num_tokens: int
) -> dict[str, list[tuple[torch.Tensor, str | None]]]:
    """The input and type of layer of each call in a packed forward, by the rotary module's name.

    A module that is called in another way is left out. All are left out if `module` cannot run.
    """
    calls: dict[str, list[tuple[torch.Tensor, str | None]]] = {name: [] for name in names}

    def hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = _known_call(args, kwargs)
            if call is None:
                calls.pop(name, None)
            elif name in calls:
                calls[name].append(call)

        return record

    handles = [
        module.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    embedding = module.get_input_embeddings().weight  # type: ignore[operator]
    try:
        probe_layers(module, random_prompts([num_tokens], len(embedding)).to(embedding.device))
    except Exception as error:  # after any error, the model keeps its own modules
        logger.info("the rotary modules cannot be recorded", exc_info=error)
        return {}
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name, found in calls.items() if found}


def _known_call(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.Tensor, str | None] | None:
    """The input and type of layer, or None for other arguments."""
    values = {**dict(zip(("x", "position_ids", "layer_type"), args, strict=False)), **kwargs}
    if len(args) > 3 or values.keys() - {"layer_type"} != {"x", "position_ids"}:
        return None
    x, positions, layer_type = values["x"], values["position_ids"], values.get("layer_type")
    if not isinstance(x, torch.Tensor) or not isinstance(positions, torch.Tensor):
        return None
    is_packed = positions.dim() == 2 and positions.shape[0] == 1
    return (x, layer_type) if is_packed and isinstance(layer_type, str | None) else None


def _table_module(
    rotary: nn.Module, calls: list[tuple[torch.Tensor, str | None]], num_positions: int
) -> RotaryTable | None:
    """The tables of all types of layers that `rotary` was called for, or None."""
    tables: dict[str | None, torch.Tensor] = {}
    for x, layer_type in calls:
        if layer_type in tables:
            continue
        table = _table(rotary, x, layer_type, num_positions)
        if table is None:
            return None
        tables[layer_type] = table
    return RotaryTable(tables)


def _table(
    rotary: nn.Module, x: torch.Tensor, layer_type: str | None, num_positions: int
) -> torch.Tensor | None:
    """Cosines and sines [num_positions, 2 * angles], or None."""
    types = () if layer_type is None else (layer_type,)
    parts: list[torch.Tensor] = []
    for part in torch.split(torch.arange(num_positions, device=x.device), CHUNK):
        both = _both(output_of(rotary, x, part.unsqueeze(0), *types), len(part))
        if both is None or both.nbytes * num_positions > MAX_TABLE_BYTES * len(part):
            return None
        parts.append(both)
    table = torch.cat(parts)
    length = num_positions
    while length > 0:  # frequencies that depend on the longest position of a call would differ
        sample = torch.linspace(0, length - 1, 64, device=x.device).long()
        expected = _both(output_of(rotary, x, sample.unsqueeze(0), *types), len(sample))
        if not agree(expected, table[sample]):
            return None
        length //= 2
    return torch.cat((table, table[-1:].expand(SPARE_ROWS, -1)))


def _both(output: object, num_rows: int) -> torch.Tensor | None:
    """Cosines beside sines [rows, 2 * angles] of a rotary module's output, or None."""
    if not isinstance(output, tuple) or len(output) != 2:
        return None
    cosines, sines = output
    if not isinstance(cosines, torch.Tensor) or not isinstance(sines, torch.Tensor):
        return None
    if cosines.shape != sines.shape or cosines.shape[:-1] != (1, num_rows):
        return None
    return torch.cat((cosines, sines), dim=-1)[0]
