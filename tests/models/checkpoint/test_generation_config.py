"""The sampling parameters that a model's makers recommend."""

import json
from pathlib import Path
from typing import Any

import pytest

from stonechat_models.checkpoint.generation_config import RANGES, read_sampling_defaults
from stonechat_models.errors import InvalidParamsError, ModelLoadError
from stonechat_models.model_info import SamplingDefaults
from stonechat_models.types import SamplingParams


def read(folder: Path, content: dict[str, Any]) -> tuple[SamplingDefaults, tuple[str, ...]]:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_sampling_defaults(folder)


def test_what_the_file_names_is_read(tmp_path: Path) -> None:
    content = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None}
    expected = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
    assert read(tmp_path, content) == (expected, ())
    assert read(tmp_path, {"temperature": 1, "top_k": -1, "repetition_penalty": 1.05}) == (
        SamplingDefaults(temperature=1.0, top_k=0, repetition_penalty=1.05),
        (),
    )


def test_an_integer_may_be_written_as_a_float(tmp_path: Path) -> None:
    defaults, notes = read(tmp_path, {"top_k": 20.0})
    assert (defaults.top_k, type(defaults.top_k), notes) == (20, int, ())


def test_a_folder_without_the_file_recommends_nothing(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == (SamplingDefaults(), ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 3.0),
        ("temperature", -1),
        ("top_p", -0.1),
        ("top_p", 1.5),
        ("min_p", 2),
        ("top_k", -2),
        ("repetition_penalty", 0),
    ],
)
def test_values_that_no_request_may_have_are_ignored_with_a_note(
    name: str, value: float, tmp_path: Path
) -> None:
    defaults, notes = read(tmp_path, {"temperature": 0.5, "top_k": 3, name: value})
    others = {"temperature": 0.5, "top_k": 3}
    others.pop(name, None)
    assert defaults == SamplingDefaults(**others)  # type: ignore[arg-type]
    (note,) = notes
    assert f"generation_config.json recommends the {name} {value:g}, which is ignored" in note


@pytest.mark.parametrize("name", sorted(RANGES.keys() - {"top_k"}))
def test_the_ranges_are_those_of_requests(name: str) -> None:
    low, high = RANGES[name]
    for value in (low, high):
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    for value in (low - 0.001, high + 0.001):
        with pytest.raises(InvalidParamsError):
            SamplingParams(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", "hot"), ("temperature", True), ("top_k", 1.5), ("min_p", {}), ("top_p", [1])],
)
def test_values_of_other_types_are_refused(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=rf"generation_config\.json: {name} is"):
        read(tmp_path, {name: value})
