"""Runs a model's own tower on one image or audio clip."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from stonechat_models.media.features import MediaFeatures
from stonechat_models.media.positions import as_array
from stonechat_models.types import MediaInput, MediaTensor


def encode_media(
    module: Any, medium: MediaInput, device: torch.device, dtype: torch.dtype
) -> MediaFeatures:
    """Return the features that the module's `get_image_features` or `get_audio_features` gives, as
    tensors of `dtype`. Tensors that it does not take are left out.

    Raises what the model's code raises if the tensors do not fit.
    """
    function = f"get_{medium.modality}_features"
    owners = [m for m in (module, module.base_model) if hasattr(m, function)]
    owner, names = owners[0], set[str]()
    for each in owners:  # the outer one may hand on names that only the inner one knows
        names |= set(inspect.signature(getattr(each, function)).parameters)
    arguments = {
        name: _tensor(value, device, dtype)
        for name, value in medium.tensors.items()
        if name in names
    }
    output = getattr(owner, function)(**arguments)
    layers: Sequence[Any] = getattr(output, "deepstack_features", None) or ()
    return MediaFeatures(
        _rows(output.pooler_output).to(dtype), tuple(_rows(layer).to(dtype) for layer in layers)
    )


def _tensor(value: MediaTensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(as_array(value), device=device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _rows(features: Any) -> torch.Tensor:
    """Return the embeddings of all parts of a medium, [n, H]."""
    if not isinstance(features, torch.Tensor):
        features = torch.cat(list(features))
    rows: torch.Tensor = features.reshape(-1, features.shape[-1])
    return rows
