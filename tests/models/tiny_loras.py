"""Tiny LoRA adapters beside a module, and copies of it in which numpy has merged each of them."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stonechat_models.checkpoint.adapter.files import Adapter, read_adapter
from tests.models.tiny_adapters import write_adapter


@dataclass
class TinyLora:
    """`merged` is the reference: a plain module of transformers."""

    adapter: Adapter
    merged: torch.nn.Module

    @property
    def name(self) -> str:
        return self.adapter.name


def tiny_lora(
    folder: Path,
    module: torch.nn.Module,
    names: Iterable[str],
    *,
    scale: float = 1.5,
    seed: int = 1,
    **config: Any,
) -> TinyLora:
    """Write the adapter of the layers `names` to `folder`, whose name it has.

    `scale` is what the settings in `config` say, worked out by hand.
    """
    products = write_adapter(folder, module, names, seed=seed, **config)
    merged = copy.deepcopy(module)
    with torch.no_grad():
        for name, product in products.items():
            layer = merged.get_submodule(name)
            if layer.weight is merged.get_input_embeddings().weight:  # type: ignore[operator]
                layer.weight = torch.nn.Parameter(layer.weight.clone())
            change = torch.from_numpy(scale * product).to(layer.weight)
            layer.weight += change.T if type(layer).__name__ == "Conv1D" else change
    return TinyLora(read_adapter(folder, folder.name), merged)
