"""How transformers' plan (`tp_plan`) splits the weights of a model between devices."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from stonechat_models.backends.transformers.kinds import auto_class, empty_module
from stonechat_models.checkpoint.hf_config import HFConfig
from stonechat_models.errors import UnsupportedModelError

BY_ROWS = frozenset({"colwise", "colwise_rep", "colwise_gather_output", "embedding_colwise"})
"""The styles that split the outputs of a layer: the rows of its weight."""
BY_COLUMNS = frozenset({"rowwise", "rowwise_rep", "rowwise_split_input"})
"""The styles that split the inputs of a layer. Its bias stays whole."""
KEY_LAYERS = frozenset({"k_proj", "qkv_proj", "query_key_value", "kv_b_proj"})
"""The names of layers that compute keys."""


@dataclass(frozen=True, slots=True)
class SplitWeight:
    """A weight whose dimension of this size is split, in each of `num_groups` equal groups."""

    name: str
    size: int
    num_groups: int = 1
    is_gathered: bool = False
    """Whether each device gets the outputs of all."""

    def is_even(self, num_ranks: int) -> bool:
        """Whether each of `num_ranks` devices gets as much."""
        return self.size % (self.num_groups * num_ranks) == 0


def splits_of(module: nn.Module) -> dict[str, SplitWeight]:
    """Return the weights of `module` that are split, by their names. Others are on each device."""
    plan: dict[str, str] = getattr(module, "_tp_plan", None) or {}
    splits = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        style = plan.get(_with_wildcards(name), plan.get(_with_wildcards(owner)))
        is_embedding = isinstance(module.get_submodule(owner), nn.Embedding)
        split = _split_of(name, style, tuple(parameter.shape), is_embedding)
        if split is not None:
            splits[name] = split
    return splits


def splits_layers(splits: dict[str, SplitWeight]) -> bool:
    """Whether more than the embedding and the output head is split."""
    return any(".layers." in f".{name}" for name in splits)


def splits_keys(splits: dict[str, SplitWeight]) -> bool:
    """Whether each device keeps only the keys and values of its own heads."""
    return any(
        name.split(".")[-2] in KEY_LAYERS and not split.is_gathered
        for name, split in splits.items()
    )


def uneven_weights(splits: dict[str, SplitWeight], num_ranks: int) -> Iterator[str]:
    """Yield what cannot be split between `num_ranks` devices in equal parts."""
    for split in splits.values():
        if not split.is_even(num_ranks):
            yield f"{split.name} has {split.size} rows or columns to split"


def refuse_whole_weights(module: nn.Module, num_ranks: int) -> None:
    """Raise `UnsupportedModelError` if a weight of a loaded module is not split as planned.

    Its layer would then add up, or gather, what each device has computed in whole.
    """
    weights = dict(module.named_parameters(remove_duplicate=False))
    for name in splits_of(module):
        weight = weights[name]
        part = weight.to_local() if hasattr(weight, "to_local") else weight
        if part.numel() * num_ranks != weight.numel():
            raise UnsupportedModelError(
                f"this version of transformers has a plan to split {name}, but loads it whole: "
                "install a newer one"
            )


def empty_split_module(config: HFConfig) -> nn.Module:
    """Return the model on the meta device. Raises `UnsupportedModelError` if it cannot be built."""
    module = empty_module(config, auto_class(config, sees=False))
    if module is None:
        raise UnsupportedModelError("only transformers' own models can be split between devices")
    return module


def _split_of(
    name: str, style: str | None, shape: tuple[int, ...], is_embedding: bool
) -> SplitWeight | None:
    is_vector = len(shape) == 1
    if style == "embedding_rowwise" or (style in BY_COLUMNS and is_embedding):
        return SplitWeight(name, shape[0])
    if style in BY_ROWS:
        size = shape[1] if is_embedding else shape[max(0, len(shape) - 2)]
        return SplitWeight(name, size, is_gathered=style != "colwise")
    if style == "packed_colwise":
        return SplitWeight(name, shape[max(0, len(shape) - 2)], 1 if is_vector else 2)
    if style in BY_COLUMNS and not is_vector:
        return SplitWeight(name, shape[-1])
    if style == "packed_rowwise" and not is_vector:
        return SplitWeight(name, shape[-1], 2)
    return None


def _with_wildcards(name: str) -> str:
    """The name as plans have it: `*` stands for the number of a layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
