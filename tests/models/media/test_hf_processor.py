"""Prompts with images equal those of each family's own processor."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.processing_utils import VideosKwargs

from stonechat_models.media.hf_processor import HFProcessor, checked_processor
from stonechat_models.media.processor_loading import counts_images
from stonechat_models.media.records import UnusableMediaError
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.more_vision_families import NEED_TORCHVISION
from tests.models.vision_models import ALL_FAMILIES, save_processor, vision_tokenizer

SIZES = ((96, 64), (150, 200), (64, 64), (300, 90))
NO_TEMPLATE = ("paligemma",)  # its processor writes the whole prompt
PROMPTED = [
    name
    for name in ALL_FAMILIES
    if name not in NO_TEMPLATE and (name not in NEED_TORCHVISION or find_spec("torchvision"))
]


def token_id(name: str) -> int:
    family = ALL_FAMILIES[name]
    found = vision_tokenizer(family).convert_tokens_to_ids(family.token)
    assert isinstance(found, int)
    return found


def image(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(sum(size)).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(noise)


def conversation(images: list[Image.Image]) -> list[dict[str, Any]]:
    """Images before, between and behind texts, in messages of users and of a tool."""
    items = [{"type": "image", "image": picture} for picture in images]
    return [
        {"role": "user", "content": [items[0], {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, *items[1:3]]},
        {"role": "tool", "content": [{"type": "text", "text": "seen: "}, items[3]]},
    ]


@pytest.mark.parametrize("name", PROMPTED)
def test_a_prompt_equals_that_of_the_processor(name: str, tmp_path: Path) -> None:
    folder = save_processor(tmp_path / name, name)
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    processor = HFProcessor(folder, "image", token_id(name))
    reference, images = processor._processor, [image(size) for size in SIZES]
    if name == "smolvlm":  # it reads numbers of its other part even without videos
        reference.video_processor = SimpleNamespace(
            num_frames=None, fps=None, valid_kwargs=VideosKwargs
        )
    messages = conversation(images)
    whole = reference.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="np"
    )
    text = reference.apply_chat_template(messages, add_generation_prompt=True)
    several = counts_images(folder)
    prepared = [processor.prepare(picture, among_others=several) for picture in images]
    pieces = text.split(processor.placeholder)
    assert len(pieces) == len(images) + 1
    start, end = processor.number_marks or ("", "")
    for i, (piece, (replacement, _, _)) in enumerate(zip(pieces[1:], prepared, strict=True)):
        number = f"{start}{i}{end}" if start else ""
        pieces[0] += number + replacement + piece
    ids = Tokenizer.from_folder(folder).encode(pieces[0])
    assert ids == whole["input_ids"][0].tolist()
    assert ids.count(token_id(name)) == sum(num_tokens for _, num_tokens, _ in prepared)


def test_a_lone_image_of_llava_onevision_has_tiles(tmp_path: Path) -> None:
    name, picture = "llava_onevision", image(SIZES[3])
    processor = HFProcessor(save_processor(tmp_path / name, name), "image", token_id(name))
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    whole = processor._processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="np"
    )
    (_, num_tokens, lone), (_, fewer, one_of_two) = (
        processor.prepare(picture, among_others=several) for several in (False, True)
    )
    assert whole["input_ids"][0].tolist().count(token_id(name)) == num_tokens > fewer
    np.testing.assert_array_equal(lone["pixel_values"], whole["pixel_values"])
    assert (len(one_of_two["pixel_values"]), one_of_two["pixel_values"].shape[1]) == (1, 1)


def test_an_image_that_becomes_no_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_processor(tmp_path / "model", "lighton_ocr")
    processor = HFProcessor(folder, "image", token_id("lighton_ocr"))
    with pytest.raises(UnusableMediaError, match="is too small for this model") as caught:
        processor.prepare(Image.new("RGB", (1, 1)))
    assert caught.value.kind == "unfit"


def test_the_tensors_of_images_alone_are_those_of_all_together(tmp_path: Path) -> None:
    folder = save_processor(tmp_path / "model", "qwen3_vl")
    processor = HFProcessor(folder, "image", token_id("qwen3_vl"))
    images = [image(size) for size in SIZES]
    whole = processor._processor(
        images=images, text=[processor.placeholder * len(images)], return_tensors="np"
    )
    alone = [processor.prepare(picture)[2] for picture in images]
    for key in ("pixel_values", "image_grid_thw"):
        assert np.array_equal(np.concatenate([tensors[key] for tensors in alone]), whole[key])


def test_why_a_model_takes_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "qwen3_vl"
    folder = save_processor(tmp_path / name, name)
    assert isinstance(checked_processor(folder, "image", token_id(name)), HFProcessor)
    reason = checked_processor(folder, "image", token_id(name) + 1)
    assert reason == "the placeholders of its processor are not its model's"
    (folder / "preprocessor_config.json").unlink()
    assert "image processor" in str(checked_processor(folder, "image", token_id(name)))
    shutil.rmtree(folder)
    folder.mkdir()
    reason = "its folder names no processor that transformers has"
    assert checked_processor(folder, "image", token_id(name)) == reason
    monkeypatch.setattr("stonechat_models.media.hf_processor.find_spec", lambda _: None)
    reason = "images need Pillow: pip install 'stonechat[vision]'"
    assert checked_processor(folder, "image", token_id(name)) == reason
