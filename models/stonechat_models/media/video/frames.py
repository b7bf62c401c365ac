"""How models see videos whose frames are images, each with the time or the number before it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.media.records import UnusableMediaError
from stonechat_models.media.video.records import Size, Video, VideoFacts

DEFAULT_FRAMES = 32
FRAME_TOKENS = 70
"""Of Gemma 4."""


@dataclass(frozen=True, slots=True)
class FrameRules:
    """The rules of InternVL's processor: frames of one size."""

    image_processor: Any
    frame_tokens: int
    num_frames: int

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        """Return the frames in the middle of equal parts."""
        total = facts.num_frames
        number = min(self.num_frames, max_frames, total)
        return [(2 * i + 1) * total // (2 * number) for i in range(number)]

    def frame_size(self, size: Size, num_frames: int) -> Size:
        fixed = self.image_processor.size
        return fixed["width"], fixed["height"]

    def num_tokens(self, size: Size, num_frames: int) -> int:
        return num_frames * self.frame_tokens

    def tensors(self, video: Video) -> dict[str, npt.NDArray[Any]]:
        outputs = [
            self.image_processor(images=[frame], crop_to_patches=False, return_tensors="np")
            for frame in video.frames
        ]
        return {"pixel_values": np.stack([output["pixel_values"] for output in outputs])}

    def text_inputs(self, video: Video) -> dict[str, Any]:
        return {"pixel_values_videos": [np.empty((len(video.frames), 0))]}


@dataclass(frozen=True, slots=True)
class SoftTokenRules:
    """The rules of Gemma 4's processor: frames that keep the ratio of their sides."""

    image_processor: Any
    max_soft_tokens: int
    """Tokens of a frame at most."""
    num_frames: int

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        """Return the first frames of equal parts."""
        total = facts.num_frames
        number = min(self.num_frames, max_frames, total)
        return [i * total // number for i in range(number)]

    def frame_size(self, size: Size, num_frames: int) -> Size:
        from transformers.models.gemma4 import image_processing_pil_gemma4 as module

        processor, (width, height) = self.image_processor, size
        kernel = processor.pooling_kernel_size
        try:
            height, width = module.get_aspect_ratio_preserving_size(
                height, width, processor.patch_size, self.max_soft_tokens * kernel**2, kernel
            )
        except ValueError:
            reason = "has frames that are too oblong for this model"
            raise UnusableMediaError("unfit", reason) from None
        return width, height

    def num_tokens(self, size: Size, num_frames: int) -> int:
        return num_frames * self._frame_tokens(size)

    def tensors(self, video: Video) -> dict[str, npt.NDArray[Any]]:
        outputs = [
            self.image_processor(
                images=[frame], max_soft_tokens=self.max_soft_tokens, return_tensors="np"
            )
            for frame in video.frames
        ]
        names = ("pixel_values", "image_position_ids")
        return {name: np.stack([output[name] for output in outputs]) for name in names}

    def text_inputs(self, video: Video) -> dict[str, Any]:
        return {"num_soft_tokens_per_video": [self._frame_tokens(video.frames[0].size)]}

    def _frame_tokens(self, size: Size) -> int:
        side = self.image_processor.patch_size * self.image_processor.pooling_kernel_size
        return int(size[0] // side * (size[1] // side))


def frame_rules(processor: Any, settings: JsonObject) -> FrameRules:
    """Return the rules of InternVL for a processor, with a folder's settings for videos."""
    number = settings.size("num_frames", DEFAULT_FRAMES)
    return FrameRules(processor.image_processor, processor.image_seq_length, number)


def soft_token_rules(processor: Any, settings: JsonObject) -> SoftTokenRules:
    """Return the rules of Gemma 4 for a processor, with a folder's settings for videos."""
    return SoftTokenRules(
        processor.image_processor,
        settings.size("max_soft_tokens", FRAME_TOKENS),
        settings.size("num_frames", DEFAULT_FRAMES),
    )
