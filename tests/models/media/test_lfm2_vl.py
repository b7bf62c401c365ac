"""LFM2-VL's images are prepared as transformers' class does it, which needs torchvision."""

from typing import Any

import numpy as np
import pytest

from stonechat_models.media.lfm2_vl import Lfm2VlImageProcessor
from stonechat_models.media.records import UnusableMediaError
from tests.models.media.prompts import noise
from tests.models.media.without_torchvision import class_of_transformers, preprocessed

MODULE = "transformers.models.lfm2_vl.image_processing_lfm2_vl"
SIZES = ((96, 64), (500, 300), (300, 301), (64, 64), (30, 400), (3, 3), (150, 620), (257, 263))
SMALL = {"tile_size": 128, "min_image_tokens": 16, "max_image_tokens": 64, "max_tiles": 6}
SETTINGS: dict[str, dict[str, Any]] = {
    "tiles": SMALL,
    "no thumbnail": {**SMALL, "use_thumbnail": False, "min_tiles": 3, "max_tiles": 10},
    "no tiles": {**SMALL, "do_image_splitting": False},
    "published": {},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_images_equal_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = class_of_transformers(monkeypatch, MODULE, "Lfm2VlImageProcessor")
    ours, scale = Lfm2VlImageProcessor(**SETTINGS[name]), 4 if name == "published" else 1
    for width, height in SIZES:
        image = noise((width * scale, height * scale))
        found = ours([image], return_row_col_info=True, return_tensors="np")
        expected = preprocessed(theirs, ours, image)
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], np.asarray(values), atol=1e-6, err_msg=key)


def test_an_image_may_be_too_narrow() -> None:
    with pytest.raises(UnusableMediaError, match="too long and narrow"):
        Lfm2VlImageProcessor(**SMALL)([noise((4, 9000))])
