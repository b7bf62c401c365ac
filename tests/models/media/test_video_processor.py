"""Videos are prepared in a process of their own, with the tensors of transformers' processors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stonechat_models.errors import InvalidMediaError, ModelLoadError, UnsupportedModelError
from stonechat_models.media.processor import MediaProcessor
from stonechat_models.media.records import VideoOptions
from stonechat_models.media.video.grids import GridRules
from stonechat_models.media.video.processor import VideoProcessor
from tests.models.media.video_prompts import write_video_settings
from tests.models.media.videos import pictures, video_file
from tests.models.vision_models import FAMILIES, save_processor, vision_tokenizer

HANG_SECONDS = 120.0
TOKEN_ID = vision_tokenizer(FAMILIES["qwen3_vl"]).convert_tokens_to_ids("<|video_pad|>")
FILE = video_file(pictures(30))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_processor(tmp_path_factory.mktemp("qwen3_vl") / "model", "qwen3_vl")
    write_video_settings(folder, "qwen3_vl")
    return folder


@pytest.fixture(scope="module")
def videos(folder: Path) -> Iterator[MediaProcessor]:
    processor = MediaProcessor(folder, {"video": TOKEN_ID})
    yield processor
    processor.close()


def test_a_prepared_video(videos: MediaProcessor) -> None:
    """Four frames a second: 0, 7, 14, 22, 29. Two make a piece, behind the mean of their times."""
    (video,) = videos.prepare([FILE], VideoOptions()).result(HANG_SECONDS)
    assert (video.modality, video.placeholder, video.seconds) == ("video", "<|video_pad|>", 1.25)
    frame = "<|vision_start|>" + 6 * "<|video_pad|>" + "<|vision_end|>"
    assert video.text == f"<0.1 seconds>{frame}<0.8 seconds>{frame}<1.2 seconds>{frame}"
    assert [piece.num_tokens for piece in video.pieces] == [6, 6, 6]
    assert video.num_tokens == 18
    tensors = video.pieces[2].tensors
    assert (tensors["pixel_values"].dtype, tensors["pixel_values"].shape) == ("float32", (24, 1536))
    grid = tensors["image_grid_thw"]
    assert np.frombuffer(grid.data, grid.dtype).tolist() == [1, 4, 6]
    assert video.placed(((0, 6),), 1).content_hash != video.placed(((0, 6),), 0).content_hash


def test_fewer_frames_are_another_video(videos: MediaProcessor) -> None:
    whole, few = (
        videos.prepare([FILE], VideoOptions(max_frames=n)).result(HANG_SECONDS)[0] for n in (32, 2)
    )
    assert (len(whole.pieces), len(few.pieces)) == (3, 1)
    assert whole.content_hash != few.content_hash


@pytest.mark.parametrize(
    ("data", "options", "kind", "reason"),
    [
        (
            video_file(pictures(31)),
            VideoOptions(max_tokens=17),
            "too_long",
            "becomes 18 tokens, and the model takes 17",
        ),
        (FILE[:200], VideoOptions(), "broken", "is broken"),
        (b"GIF89a", VideoOptions(), "format", "is not an MP4, MOV, WebM or Matroska file"),
    ],
)
def test_a_file_that_is_refused(
    videos: MediaProcessor, data: bytes, options: VideoOptions, kind: str, reason: str
) -> None:
    with pytest.raises(InvalidMediaError) as error_info:
        videos.prepare([data], options).result(HANG_SECONDS)
    assert error_info.value.kind == kind
    assert error_info.value.reason.startswith(reason)


def test_a_processor_without_rules_for_videos(tmp_path: Path) -> None:
    folder = save_processor(tmp_path / "model", "gemma3")
    with pytest.raises(UnsupportedModelError, match="videos are not served"):
        VideoProcessor(folder, 0)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_settings_of_images_do_not_count(name: str, tmp_path: Path) -> None:
    """The most pixels of an image would be many more tokens."""
    folder = save_processor(tmp_path / "model", name)
    rules = VideoProcessor(folder, TOKEN_ID)._rules
    assert isinstance(rules, GridRules)
    assert rules.size["longest_edge"] == (768 * 784 if name == "qwen2_5_vl" else 25165824)


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("qwen3_vl", {"fps": "two"}, "fps is 'two'"),
        ("qwen3_vl", {"size": {"longest_edge": [5]}}, "size: longest_edge is"),
        ("qwen2_5_vl", {"max_pixels": -1}, "max_pixels is -1"),
        ("gemma4", {"num_frames": "all"}, "num_frames is 'all'"),
    ],
)
def test_a_setting_of_a_wrong_type_is_no_fault_of_a_video(
    name: str, settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = save_processor(tmp_path / "model", name)
    (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelLoadError, match=problem) as error_info:
        VideoProcessor(folder, 0)
    assert "video_preprocessor_config.json" in str(error_info.value)
