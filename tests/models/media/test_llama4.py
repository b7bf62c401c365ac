"""Llama 4's images are prepared as transformers' class does it, which needs torchvision."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stonechat_models.backends.transformers.loading.pretrained import complete_outputs
from stonechat_models.media.llama4 import Llama4ImageProcessor
from tests.models.media.prompts import noise
from tests.models.media.without_torchvision import class_of_transformers, preprocessed

MODULE = "transformers.models.llama4.image_processing_llama4"
SIZES = ((96, 64), (56, 56), (168, 56), (300, 301), (30, 400), (3, 3), (46, 184), (184, 92))
SMALL = {"size": {"height": 56, "width": 56}}
MEANS = {"image_mean": [0.481, 0.458, 0.408], "image_std": [0.269, 0.261, 0.276]}
SETTINGS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {**SMALL, **MEANS},
    "five tiles": {**SMALL, "max_patches": 5},
    "scaled up": {**SMALL, "max_patches": 5, "resize_to_max_canvas": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_images_equal_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = class_of_transformers(monkeypatch, MODULE, "Llama4ImageProcessor")
    ours = Llama4ImageProcessor(**SETTINGS[name])
    for size in SIZES:
        image = noise(size)
        found = ours([image], return_tensors="np")
        expected = preprocessed(theirs, ours, image)
        assert found["aspect_ratios"].tolist() == [x.tolist() for x in expected["aspect_ratios"]]
        pixels = torch.cat(expected["pixel_values"]).float().numpy()
        np.testing.assert_array_equal(found["pixel_values"], pixels)


def test_a_later_version_of_the_model_stays_as_it_is() -> None:
    """Its output has the field, or it has no such part."""
    module: Any = type("Llama4ForConditionalGeneration", (torch.nn.Module,), {})()
    complete_outputs(module)
    text = {"forward": lambda _, output: output}
    module.language_model = type("Llama4ForCausalLM", (torch.nn.Module,), text)()
    complete_outputs(module)
    assert module.language_model(SimpleNamespace(image_outputs=5)).image_outputs == 5
    assert module.language_model(SimpleNamespace()).image_outputs is None
