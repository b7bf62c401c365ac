"""Merges a LoRA adapter into a loaded module."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from stonechat_models.checkpoint.adapter.files import Adapter, is_adapter
from stonechat_models.errors import ModelLoadError, UnsupportedModelError


def refuse_unasked_adapter(folder: Path) -> None:
    """Raise `ModelLoadError` if transformers would load an adapter from a model's folder itself."""
    if is_adapter(folder) and find_spec("peft") is not None:
        raise ModelLoadError(
            f"{folder} has a LoRA adapter beside the model, which transformers loads if the "
            "package peft is installed; move the adapter to another folder"
        )


@torch.no_grad()
def merge_adapter(module: nn.Module, adapter: Adapter, model: str) -> None:
    """Add to the weights of `module`, which is called `model`, what the adapter adds to them.

    Raises `ModelLoadError` if the adapter belongs to another model, and `UnsupportedModelError` for
    weights that are quantised, left on disk, or shared by two parts of the model.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    adapter.refuse_missing(model, adapter.layers.keys() - parameters.keys())
    uses = Counter(map(id, parameters.values()))
    for name in adapter.layers:
        if uses[id(parameters[name])] > 1:
            raise UnsupportedModelError(
                f"the adapter {adapter.name} changes {name}, which is also another part of {model}"
            )
        if parameters[name].is_meta:
            raise UnsupportedModelError("an adapter cannot be merged into weights left on disk")
        owner = module.get_submodule(name.removesuffix(".weight"))
        merged = adapter.merged(name, parameters[name], transposed=isinstance(owner, Conv1D))
        parameters[name].copy_(merged)
