"""Which tensors of a LoRA adapter's file belong to which layer, with their ranks and scales."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stonechat_models.checkpoint.patterns import compiled
from stonechat_models.errors import ModelLoadError, UnsupportedModelError

MAX_SHOWN = 128
_TENSOR = re.compile(r"base_model\.model\.(.+)\.(?:lora_(A|B)|base_layer)\.weight")


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """The tensors of one linear layer, by their names in the adapter's file.

    `shape`: [out, in] of the weight that they change. `copy`: a copy of that weight; empty if the
    file has none.
    """

    a: str
    b: str
    shape: tuple[int, int]
    rank: int
    scale: float
    copy: str = ""


def layer_tensors(path: Path) -> dict[str, dict[str, tuple[str, Sequence[int]]]]:
    """Return the name and the shape of each layer's tensors: A, B, and perhaps W, the weight.

    Raises `UnsupportedModelError` for other tensors.
    """
    from safetensors import safe_open

    pairs: dict[str, dict[str, tuple[str, Sequence[int]]]] = {}
    with safe_open(path, framework="np") as file:
        for name in file.keys():  # noqa: SIM118
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise UnsupportedModelError(
                    f"{path} has the tensor {name[:MAX_SHOWN]}, which is not part of a linear "
                    "layer's LoRA"
                )
            kind = match[2] or "W"
            pairs.setdefault(match[1], {})[kind] = name, file.get_slice(name).get_shape()
    if not pairs:
        raise ModelLoadError(f"{path} has no tensors; download it again")
    return pairs


def lora_layers(
    path: Path,
    tensors: Mapping[str, Mapping[str, tuple[str, Sequence[int]]]],
    config: Mapping[str, Any],
) -> Iterator[tuple[str, LoraLayer]]:
    """Yield each layer under the name of its weight.

    `config` is adapter_config.json. Raises `ModelLoadError` for tensors of other ranks, and
    `ValueError` for a config that cannot be read.
    """
    ranks, alphas = _patterns(config, "rank_pattern"), _patterns(config, "alpha_pattern")
    for module, pair in tensors.items():
        rank = _first(ranks, module, config.get("r"))
        alpha = _first(alphas, module, config.get("lora_alpha"))
        is_number = isinstance(alpha, int | float) and math.isfinite(alpha)
        if not isinstance(rank, int) or rank < 1 or not is_number:
            raise ValueError(f"its rank {rank} or lora_alpha {alpha} is not a number")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        (a, a_shape), (b, b_shape) = pair.get("A", ("", ())), pair.get("B", ("", ()))
        are_matrices = len(a_shape) == len(b_shape) == 2
        if not are_matrices or (a_shape[0], b_shape[1]) != (rank, rank):
            raise ModelLoadError(f"{path}: {module} needs both tensors of rank {rank}")
        copy, _ = pair.get("W", ("", ()))
        yield f"{module}.weight", LoraLayer(a, b, (b_shape[0], a_shape[1]), rank, scale, copy)


def _patterns(config: Mapping[str, Any], key: str) -> list[tuple[Callable[[str], bool], Any]]:
    """Return the patterns for the ends of modules' names, and their values."""
    patterns = config.get(key) or {}
    return [(compiled(rf"(.*\.)?({text})$"), value) for text, value in patterns.items()]


def _first(patterns: list[tuple[Callable[[str], bool], Any]], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name."""
    return next((value for matches, value in patterns if matches(module)), default)
