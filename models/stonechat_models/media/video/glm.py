"""How GLM-4.xV sees videos: pairs of frames, each with its second behind it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.media.video.grids import GridRules, grid_rules
from stonechat_models.media.video.records import Size, VideoFacts

SIZE = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 2 * 30000}
MAX_DURATION = 300.0


@dataclass(frozen=True, slots=True)
class GlmRules(GridRules):
    """The rules of GLM-4.xV's processor, which are otherwise those of Qwen3-VL."""

    max_duration: float = MAX_DURATION
    """Seconds of a video from whose beginning on frames are taken at `fps`."""

    def indices(self, facts: VideoFacts, max_frames: int) -> list[int]:
        """Return `fps` frames of each second; of a longer video, as many from all over it."""
        last, number = facts.num_frames - 1, max(1, int(facts.seconds * self.fps))
        most = min(int(self.max_duration * self.fps), max_frames)
        is_long = facts.seconds > self.max_duration or number > most
        if is_long and facts.num_frames <= most:
            return list(range(facts.num_frames))
        if is_long:
            wanted = [float(time) * facts.rate for time in np.linspace(0, facts.seconds, most)]
        else:
            wanted = [i * facts.rate / self.fps for i in range(number)]
        return list(dict.fromkeys(min(last, math.ceil(frame)) for frame in wanted))

    def frame_size(self, size: Size, num_frames: int) -> Size:
        # The last frame stands twice if the number is odd.
        return GridRules.frame_size(self, size, num_frames + num_frames % 2)


def glm_rules(processor: Any, settings: JsonObject) -> GlmRules:
    """Return the rules for a processor of transformers, with a folder's settings for videos."""
    rules = grid_rules(processor, settings, spans_video=True, size=SIZE)
    return GlmRules(
        rules.image_processor,
        rules.size,
        rules.spans_video,
        fps=rules.fps,
        max_duration=settings.positive("max_duration", float, MAX_DURATION),
    )
