"""The sampling parameters that a model's makers recommend."""

import json
from pathlib import Path
from typing import Any

import pytest

from stonechat_models.checkpoint.generation_config import read_sampling_defaults
from stonechat_models.errors import ModelLoadError
from stonechat_models.types import SamplingDefaults


def read(folder: Path, content: dict[str, Any]) -> SamplingDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_sampling_defaults(folder)


def test_what_the_file_names_is_read(tmp_path: Path) -> None:
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None}
    assert read(tmp_path, content) == SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert read(tmp_path, {"temperature": 1, "top_k": -1, "repetition_penalty": 1.05}) == (
        SamplingDefaults(temperature=1.0, top_k=0, repetition_penalty=1.05)
    )


def test_a_folder_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 2.5), ("temperature", "hot"), ("top_p", -0.1), ("top_k", 1.5), ("min_p", {})],
)
def test_values_that_no_request_may_have_are_refused(
    name: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: {name} is"):
        read(tmp_path, {name: value})
