"""Runs a model's own vision tower on one image."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from stonechat_models.types import ImageInput, ImageTensor
from stonechat_models.vision.features import ImageFeatures
from stonechat_models.vision.positions import as_array


def encode_image(
    module: Any, image: ImageInput, device: torch.device, dtype: torch.dtype
) -> ImageFeatures:
    """Return the features that `module.get_image_features` gives, as tensors of `dtype`.

    Tensors that it does not take are left out.

    Raises what the model's code raises if the image's tensors do not fit.
    """
    owners = [m for m in (module, module.base_model) if hasattr(m, "get_image_features")]
    owner, names = owners[0], set[str]()
    for each in owners:  # the outer one may hand on names that only the inner one knows
        names |= set(inspect.signature(each.get_image_features).parameters)
    arguments = {
        name: _tensor(value, device, dtype)
        for name, value in image.tensors.items()
        if name in names
    }
    output = owner.get_image_features(**arguments)
    layers: Sequence[Any] = getattr(output, "deepstack_features", None) or ()
    return ImageFeatures(
        _rows(output.pooler_output).to(dtype), tuple(_rows(layer).to(dtype) for layer in layers)
    )


def _tensor(value: ImageTensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.tensor(as_array(value), device=device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _rows(features: Any) -> torch.Tensor:
    """Return the embeddings of all parts of an image, [n, H]."""
    if not isinstance(features, torch.Tensor):
        features = torch.cat(list(features))
    rows: torch.Tensor = features.reshape(-1, features.shape[-1])
    return rows
