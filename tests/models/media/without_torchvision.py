"""Image processors that transformers has for torchvision alone, with others in its place."""

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import resize
from transformers.image_utils import ChannelDimension


def class_of_transformers(monkeypatch: pytest.MonkeyPatch, module_name: str, name: str) -> Any:
    """Return a class, which scales with Pillow."""
    for package in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    functional = SimpleNamespace(pad=padded)
    package = sys.modules["torchvision.transforms.v2"]
    monkeypatch.setattr(package, "functional", functional, raising=False)
    found = getattr(import_module(module_name), name)
    monkeypatch.delitem(sys.modules, module_name)
    backend = found.__bases__[0]
    monkeypatch.setattr(backend, "resize", resized)
    monkeypatch.setattr(backend, "rescale_and_normalize", rescaled)
    monkeypatch.setattr(backend, "normalize", normalised)
    return found


def preprocessed(their_class: Any, ours: Any, image: Image.Image) -> Any:
    """Return what the class makes of an image, with the settings of our processor."""
    names = type(ours).valid_kwargs.__annotations__
    settings = {key: getattr(ours, key, None) for key in names} | {
        **dict.fromkeys(("do_pad", "disable_grouping", "return_row_col_info"), True),
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
        "return_tensors": None,
    }
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    return object.__new__(their_class)._preprocess([pixels], **settings)


def resized(_: Any, image: torch.Tensor, size: Any, resample: Any, **__: Any) -> torch.Tensor:
    order = {f"{name}data_format": ChannelDimension.FIRST for name in ("", "input_")}
    scaled = [
        resize(each.numpy(), (int(size.height), int(size.width)), resample, **order)
        for each in image
    ]
    return torch.from_numpy(np.stack(scaled))


def rescaled(_: Any, images: torch.Tensor, *settings: Any) -> torch.Tensor:
    _, scale, _, mean, std = settings
    return normalised(_, images * scale, mean, std)


def normalised(_: Any, images: torch.Tensor, *settings: Any) -> torch.Tensor:
    mean, std = (torch.tensor(x, dtype=images.dtype)[:, None, None] for x in settings)
    return (images - mean) / std


def padded(images: torch.Tensor, padding: list[Any], fill: list[int]) -> torch.Tensor:
    assert padding[:2] == fill[:2] == [0, 0]
    return torch.nn.functional.pad(images, (0, int(padding[2]), 0, int(padding[3])))
