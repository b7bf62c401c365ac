"""LFM2-VL's images are prepared as transformers' class does it, which needs torchvision."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers.image_transforms import resize
from transformers.image_utils import ChannelDimension

from stonechat_models.media.lfm2_vl import Lfm2VlImageProcessor
from stonechat_models.media.records import UnusableMediaError
from tests.models.media.prompts import noise

MODULE = "transformers.models.lfm2_vl.image_processing_lfm2_vl"
SIZES = ((96, 64), (500, 300), (300, 301), (64, 64), (30, 400), (3, 3), (150, 620), (257, 263))
SMALL = {"tile_size": 128, "min_image_tokens": 16, "max_image_tokens": 64, "max_tiles": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "tiles": SMALL,
    "no thumbnail": {**SMALL, "use_thumbnail": False, "min_tiles": 3, "max_tiles": 10},
    "no tiles": {**SMALL, "do_image_splitting": False},
    "published": {},
}


def resized(_: Any, image: torch.Tensor, size: Any, resample: Any, **__: Any) -> torch.Tensor:
    order = {f"{name}data_format": ChannelDimension.FIRST for name in ("", "input_")}
    scaled = [resize(each.numpy(), (size.height, size.width), resample, **order) for each in image]
    return torch.from_numpy(np.stack(scaled))


def normalised(_: Any, images: torch.Tensor, *settings: Any) -> torch.Tensor:
    _, scale, _, mean, std = settings
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (images * scale - mean) / std


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of transformers, with Pillow in the place of torchvision."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["torchvision.transforms.v2"], "functional", None, raising=False)
    module = import_module(MODULE)
    monkeypatch.delitem(sys.modules, MODULE)
    backend = module.Lfm2VlImageProcessor.__bases__[0]
    monkeypatch.setattr(backend, "resize", resized)
    monkeypatch.setattr(backend, "rescale_and_normalize", normalised)
    return module.Lfm2VlImageProcessor


@pytest.mark.parametrize("name", SETTINGS)
def test_images_equal_those_of_transformers(name: str, theirs: Any) -> None:
    ours, scale = Lfm2VlImageProcessor(**SETTINGS[name]), 4 if name == "published" else 1
    names = Lfm2VlImageProcessor.valid_kwargs.__annotations__
    settings = {key: getattr(ours, key, None) for key in names} | {
        **dict.fromkeys(("do_pad", "disable_grouping", "return_row_col_info"), True),
        "return_tensors": None,
    }
    for width, height in SIZES:
        image = noise((width * scale, height * scale))
        found = ours([image], return_row_col_info=True, return_tensors="np")
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        expected = object.__new__(theirs)._preprocess([pixels], **settings)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], np.asarray(values), atol=1e-6, err_msg=key)


def test_an_image_may_be_too_narrow() -> None:
    with pytest.raises(UnusableMediaError, match="too long and narrow"):
        Lfm2VlImageProcessor(**SMALL)([noise((4, 9000))])
