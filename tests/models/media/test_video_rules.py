"""Which frames are taken and how large: stored facts, made with transformers 5.24 and torchvision.

`sample_frames` and `smart_resize` of `Qwen2VLVideoProcessor` with `fps=2` and its own size, and of
`Qwen3VLVideoProcessor` with the published settings.
"""

from types import SimpleNamespace

import pytest

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.media.number_words import in_words
from stonechat_models.media.records import UnusableMediaError
from stonechat_models.media.video.frames import FrameRules, SoftTokenRules
from stonechat_models.media.video.glm import SIZE as GLM_SIZE
from stonechat_models.media.video.glm import GlmRules
from stonechat_models.media.video.grids import QWEN2_SIZE, QWEN3_SIZE, GridRules
from stonechat_models.media.video.records import VideoFacts
from stonechat_models.media.video.smolvlm import SquareRules, square_rules


def rules(patch_size: int, size: dict[str, int], *, spans_video: bool) -> GridRules:
    shape = SimpleNamespace(patch_size=patch_size, temporal_patch_size=2, merge_size=2)
    return GridRules(shape, size, spans_video)


QWEN2 = rules(14, QWEN2_SIZE, spans_video=False)
QWEN3 = rules(16, QWEN3_SIZE, spans_video=True)


@pytest.mark.parametrize(
    ("num_frames", "rate", "qwen2", "qwen3"),
    [
        (30, 24.0, [0, 7, 15, 22], [0, 10, 19, 29]),
        (7, 24.0, [0, 1, 3, 5], [0, 2, 4, 6]),
        (120, 30.0, [0, 15, 30, 45, 60, 75, 90, 105], [0, 17, 34, 51, 68, 85, 102, 119]),
        (3, 2.0, [0, 1], [0, 1, 2]),
        (23, 60.0, [0, 5, 11, 17], [0, 7, 15, 22]),
    ],
)
def test_frames_are_those_of_transformers(
    num_frames: int, rate: float, qwen2: list[int], qwen3: list[int]
) -> None:
    facts = VideoFacts(num_frames, rate, (96, 64))
    assert QWEN2.indices(facts, 768) == qwen2
    assert QWEN3.indices(facts, 768) == qwen3


@pytest.mark.parametrize(
    ("num_frames", "rate", "qwen2", "qwen3"),
    [
        (1762, 15.015, (234, 7, 1754), (234, 8, 1761)),
        (422, 24.0, (34, 12, 409), (35, 12, 421)),
        (55637, 1.0, (768, 72, 55564), (768, 73, 55636)),
    ],
)
def test_many_frames_are_those_of_transformers(
    num_frames: int, rate: float, qwen2: tuple[int, ...], qwen3: tuple[int, ...]
) -> None:
    """How many, the second and the last."""
    facts = VideoFacts(num_frames, rate, (96, 64))
    for rules, expected in ((QWEN2, qwen2), (QWEN3, qwen3)):
        indices = rules.indices(facts, 768)
        assert (len(indices), indices[1], indices[-1]) == expected


@pytest.mark.parametrize(
    ("size", "num_frames", "qwen2", "qwen3"),
    [
        ((1992, 1660), 40, (840, 700), (864, 704)),
        ((572, 1156), 19, (532, 1092), (576, 1152)),
        ((3683, 3485), 89, (784, 728), (544, 512)),
        ((1194, 2896), 17, (476, 1204), (768, 1888)),
        ((375, 331), 42, (364, 336), (384, 320)),
        ((3758, 2326), 30, (980, 588), (1152, 704)),
    ],
)
def test_sizes_are_those_of_transformers(
    size: tuple[int, int], num_frames: int, qwen2: tuple[int, int], qwen3: tuple[int, int]
) -> None:
    assert QWEN2.frame_size(size, num_frames) == qwen2
    assert QWEN3.frame_size(size, num_frames) == qwen3


@pytest.mark.parametrize("rules", [QWEN2, QWEN3])
def test_bounds(rules: GridRules) -> None:
    facts = VideoFacts(10_000, 25.0, (96, 64))
    assert len(rules.indices(facts, 32)) == 32
    assert rules.indices(facts, 1) == [0]
    assert rules.indices(VideoFacts(1, 25.0, (96, 64)), 32) == [0]
    assert rules.num_tokens((56, 56), 1) == rules.num_tokens((56, 56), 2) > 0
    assert min(rules.frame_size((2, 2), 1)) >= rules.factor
    with pytest.raises(UnusableMediaError, match="too oblong"):
        rules.frame_size((3, 900), 4)


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "gemma4", "internvl"),
    [
        (30, 3, [0, 10, 20], [5, 15, 25]),
        (41, 4, [0, 10, 20, 30], [5, 15, 25, 35]),
        (2, 8, [0, 1], [0, 1]),
        (1, 8, [0], [0]),
    ],
)
def test_frames_of_equal_parts(
    num_frames: int, max_frames: int, gemma4: list[int], internvl: list[int]
) -> None:
    """As `sample_frames` of transformers' `Gemma4VideoProcessor` and `InternVLVideoProcessor`."""
    facts = VideoFacts(num_frames, 24.0, (96, 64))
    assert SoftTokenRules(None, 70, 32).indices(facts, max_frames) == gemma4
    assert FrameRules(None, 256, 32).indices(facts, max_frames) == internvl


def test_frames_of_glm() -> None:
    """As `sample_frames` and `smart_resize` of transformers' `Glm4vVideoProcessor`."""
    shape = SimpleNamespace(patch_size=14, temporal_patch_size=2, merge_size=2)
    rules = GlmRules(shape, GLM_SIZE, True)
    for num_frames, rate, expected in (
        (30, 24.0, [0, 12]),
        (7, 24.0, [0]),
        (120, 30.0, [0, 15, 30, 45, 60, 75, 90, 105]),
    ):
        assert rules.indices(VideoFacts(num_frames, rate, (96, 64)), 768) == expected
    long = VideoFacts(9000, 25.0, (96, 64))
    indices = rules.indices(long, 768)
    assert (len(indices), indices[1], indices[-1]) == (600, 16, 8999)
    assert len(rules.indices(long, 32)) == 32
    a_little_long = rules.indices(VideoFacts(9009, 30.0, (96, 64)), 768)
    assert (len(a_little_long), a_little_long[:3], a_little_long[-1]) == (600, [0, 16, 31], 9008)
    assert rules.frame_size((1992, 1660), 40) == (1176, 980)
    assert rules.frame_size((572, 1156), 19) == (560, 1148)
    assert rules.frame_size((375, 331), 42) == (364, 336)


def test_frames_of_smolvlm() -> None:
    """As `sample_frames` and the first scaling of transformers' `SmolVLMVideoProcessor`."""
    rules = SquareRules(None, 81, 512, 1.0, 64)
    for num_frames, rate, expected in (
        (30, 24.0, [0]),
        (120, 30.0, [0, 39, 79, 119]),
        (9000, 25.0, [25, 2262, 4500, 6737, 8975]),
    ):
        assert rules.indices(VideoFacts(num_frames, rate, (96, 64)), 5) == expected
    sizes = ((1992, 1660), (572, 1156), (3, 900))
    assert [rules.frame_size(size, 1) for size in sizes] == [(512, 426), (254, 512), (2, 512)]
    parts = {"max_image_size": {"longest_edge": 512}}
    processor = SimpleNamespace(image_processor=SimpleNamespace(**parts), image_seq_len=81)
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
    for settings, edge in (({}, 512), ({"size": {"longest_edge": 2048}}, 2048)):
        made = square_rules(processor, JsonObject("x", {"video_sampling": sampling, **settings}))
        assert (made.longest_edge, made.fps, made.num_frames) == (edge, 1.0, 64)
    huge = {"size": {"longest_edge": 1 << 20}}
    assert square_rules(processor, JsonObject("x", huge)).longest_edge == 4096


def test_numbers_in_words() -> None:
    """As the package num2words writes them."""
    numbers = {
        *((0, "zero"), (13, "thirteen"), (20, "twenty"), (64, "sixty-four"), (100, "one hundred")),
        (999, "nine hundred and ninety-nine"),
    }
    assert all(in_words(number) == words for number, words in numbers)
