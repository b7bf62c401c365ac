"""How Qwen's models see videos: frames at a rate, in groups, each with a grid of patches.

Settings of a folder go before those here, which are the published ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.media.records import UnusableMediaError
from stonechat_models.media.video.records import Size, Video, VideoFacts

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_OBLONG = 200
"""How many times longer one side of a frame may be than the other."""


@dataclass(frozen=True, slots=True)
class GridRules:
    """The rules of Qwen's processors: frames at a rate, in groups, each with a grid of patches."""

    image_processor: Any
    size: Mapping[str, int]
    """The least and the most pixels (`shortest_edge`, `longest_edge`): of a frame, or of all."""
    spans_video: bool
    """Whether frames are taken up to the last one, and `size` bounds the pixels of all of them."""
    fps: float = 2.0
    """Frames a second that are taken."""
    min_frames: int = 4
    max_frames: int = 768

    @property
    def group(self) -> int:
        """Frames of a group."""
        return int(self.image_processor.temporal_patch_size)

    @property
    def factor(self) -> int:
        """Pixels of a token's side."""
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        total = facts.num_frames
        wanted = total / facts.rate * self.fps
        most = min(self.max_frames, max_frames, total)
        if self.spans_video:
            number = max(1, min(max(int(wanted), self.min_frames), most))
            return [int(i) for i in np.linspace(0, total - 1, number).round()]
        group = self.group
        wanted = min(max(wanted, self.min_frames), most // group * group)
        number = math.floor(wanted / group) * group or 1
        # In single precision, as PyTorch counts: near a whole number it is the other one.
        return [int(i) for i in (np.arange(number) * (total / number)).astype(np.float32)]

    def frame_size(self, size: Size, num_frames: int) -> Size:
        width, height = size
        factor, counted = self.factor, 1
        if self.spans_video:
            num_frames = max(num_frames, self.group)
            counted = round(num_frames / self.group) * self.group
            if min(width, height) < factor:
                scale = max(factor / height, factor / width)
                width, height = int(width * scale), int(height * scale)
        else:
            num_frames = 1
        if max(width, height) / min(width, height) > MOST_OBLONG:
            raise UnusableMediaError("unfit", "has frames that are too oblong for this model")
        sides = [round(side / factor) * factor for side in (width, height)]
        least, most = self.size["shortest_edge"], self.size["longest_edge"]
        pixels = counted * sides[0] * sides[1]
        if pixels > most:
            shrink = math.sqrt(num_frames * height * width / most)
            sides = [max(factor, math.floor(s / shrink / factor) * factor) for s in (width, height)]
        elif pixels < least:
            grow = math.sqrt(least / (num_frames * height * width))
            sides = [math.ceil(side * grow / factor) * factor for side in (width, height)]
        return sides[0], sides[1]

    def num_tokens(self, size: Size, num_frames: int) -> int:
        return int(self._grid(size, num_frames).prod() // self.image_processor.merge_size**2)

    def tensors(self, video: Video) -> dict[str, npt.NDArray[Any]]:
        grid = self._grid(video.frames[0].size, len(video.frames))
        rate = len(video.frames) / video.facts.num_frames * video.facts.rate
        number = int(grid[0])
        return {
            "pixel_values": np.stack([self._patches(video.frames, i) for i in range(number)]),
            "image_grid_thw": np.tile(np.array([[1, *grid[1:]]]), (number, 1, 1)),
            "second_per_grid_ts": np.full(number, self.group / rate),
            "piece_number": np.arange(number),
        }

    def text_inputs(self, video: Video) -> dict[str, Any]:
        return {"video_grid_thw": [self._grid(video.frames[0].size, len(video.frames))]}

    def _grid(self, size: Size, num_frames: int) -> npt.NDArray[np.int64]:
        """Return the patches of a video, int64[3]: time, height, width.

        The last frame fills up the last group.
        """
        width, height = (side // self.image_processor.patch_size for side in size)
        return np.array([-(-num_frames // self.group), height, width])

    def _patches(self, frames: "list[Image]", group: int) -> npt.NDArray[np.float32]:
        """Return the patches of a group of frames, float32[patches, C * frames * pixels].

        The image processor repeats each frame as if it was the whole group. Of each frame its own
        place is taken.
        """
        length, pixels = self.group, self.image_processor.patch_size**2
        chosen = [frames[min(group * length + i, len(frames) - 1)] for i in range(length)]
        output = self.image_processor(images=chosen, do_resize=False, return_tensors="np")
        patches = output["pixel_values"]
        parts = patches.reshape(length, len(patches) // length, -1, length, pixels)
        own = np.stack([parts[i, :, :, i] for i in range(length)], axis=2)
        return own.reshape(len(own), -1)


QWEN2_SIZE = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}
QWEN3_SIZE = {"shortest_edge": 4 * 32 * 32, "longest_edge": 768 * 32 * 32 * 32}


def grid_rules(
    processor: Any,
    settings: JsonObject,
    *,
    spans_video: bool,
    size: Mapping[str, int] | None = None,
) -> GridRules:
    """Return the rules for a processor of transformers, with a folder's settings for videos.

    `size` is the published one. Raises `ModelLoadError` for settings of a wrong type.
    """
    image_processor = processor.image_processor
    processor.video_processor = SimpleNamespace(
        merge_size=image_processor.merge_size,
        temporal_patch_size=image_processor.temporal_patch_size,
    )
    size = size or (QWEN3_SIZE if spans_video else QWEN2_SIZE)
    own = settings.section("size")
    return GridRules(
        image_processor,
        {
            edge: settings.size(name, own.size(edge, size[edge]))
            for edge, name in (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))
        },
        spans_video,
        fps=settings.positive("fps", float, 2.0),
        min_frames=settings.size("min_frames", 4),
        max_frames=settings.size("max_frames", 768),
    )
