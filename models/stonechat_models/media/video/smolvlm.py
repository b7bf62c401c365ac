"""How SmolVLM2 sees videos: square frames, each with the time before it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.media.video.records import Size, Video, VideoFacts

DEFAULT_FRAMES, MOST_FRAMES = 64, 999
LARGEST_EDGE = 4096
SKIPPED_SECONDS = 1.0
"""What is left out at both ends of a long video."""


@dataclass(frozen=True, slots=True)
class SquareRules:
    """The rules of SmolVLM2's processor: frames at a rate, scaled to squares."""

    image_processor: Any
    frame_tokens: int
    longest_edge: int
    """Pixels of a frame's longer side, before it becomes a square."""
    fps: float
    num_frames: int

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        """Return frames that are spread evenly, of a long video without its ends."""
        most = min(self.num_frames, max_frames)
        number = max(1, min(round(self.fps * facts.seconds), most))
        first, last = 0, facts.num_frames - 1
        if facts.seconds - 2 * SKIPPED_SECONDS > most * self.fps:
            skipped = SKIPPED_SECONDS * facts.rate
            inner = int(skipped), min(int(facts.num_frames - skipped), last)
            first, last = inner if inner[0] < inner[1] else (first, last)
        return [int(i) for i in np.unique(np.linspace(first, last, number, dtype=int))]

    def frame_size(self, size: Size, num_frames: int) -> Size:
        width, height = size
        longest, ratio = self.longest_edge, width / height
        if width >= height:
            shorter = int(longest / ratio)
            return longest, max(1, shorter + shorter % 2)
        shorter = int(longest * ratio)
        return max(1, shorter + shorter % 2), longest

    def num_tokens(self, size: Size, num_frames: int) -> int:
        return num_frames * self.frame_tokens

    def tensors(self, video: Video) -> dict[str, npt.NDArray[Any]]:
        from PIL import Image

        processor, options = self.image_processor, {"do_image_splitting": False, "do_resize": False}
        side, resample = processor.max_image_size["longest_edge"], int(processor.resample)
        squares = [f.resize((side, side), Image.Resampling(resample)) for f in video.frames]
        outputs = [processor(images=[each], return_tensors="np", **options) for each in squares]
        names = ("pixel_values", "pixel_attention_mask")
        return {name: np.stack([output[name] for output in outputs]) for name in names}

    def text_inputs(self, video: Video) -> dict[str, Any]:
        return {"pixel_values": np.empty((1, len(video.frames)))}


def square_rules(processor: Any, settings: JsonObject) -> SquareRules:
    """Return the rules for a processor of transformers, with a folder's settings for videos.

    As in transformers, a `size` beside them goes before their own `video_size`.
    """
    sampling = settings.section("video_sampling")
    side = processor.image_processor.max_image_size["longest_edge"]
    video_size = sampling.section("video_size").size("longest_edge", side)
    longest_edge = settings.section("size").size("longest_edge", video_size)
    return SquareRules(
        processor.image_processor,
        processor.image_seq_len,
        min(longest_edge, LARGEST_EDGE),
        fps=sampling.positive("fps", float, 1.0),
        num_frames=sampling.size("max_frames", DEFAULT_FRAMES, MOST_FRAMES),
    )
