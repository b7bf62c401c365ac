"""The Hugging Face processor of a model, for one video at a time.

A group of frames becomes a piece, which the model's tower encodes as it encodes an image. So a long
video does not hold up a step.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stonechat_models.checkpoint.hf_config import JsonObject
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.processor_loading import VIDEO_CONFIG, load_processor
from stonechat_models.media.records import UnusableMediaError, VideoOptions
from stonechat_models.media.video.frames import frame_rules, soft_token_rules
from stonechat_models.media.video.glm import glm_rules
from stonechat_models.media.video.grids import grid_rules
from stonechat_models.media.video.records import Choose, Size, Video, VideoFacts, VideoRules
from stonechat_models.media.video.smolvlm import square_rules
from stonechat_models.model_file import read_json

if TYPE_CHECKING:
    import numpy as np

RULES: Mapping[str, Callable[[Any, JsonObject], VideoRules]] = {
    "Qwen2VLProcessor": partial(grid_rules, spans_video=False),
    "Qwen2_5_VLProcessor": partial(grid_rules, spans_video=False),
    "Qwen3VLProcessor": partial(grid_rules, spans_video=True),
    "InternVLProcessor": frame_rules,
    "Gemma4Processor": soft_token_rules,
    "Glm4vProcessor": glm_rules,
    "SmolVLMProcessor": square_rules,
}
"""By the class of the processor."""


class VideoProcessor:
    """A model's processor for videos: that for images, and rules for the frames."""

    def __init__(self, folder: Path, token_id: int) -> None:
        """Load the processor of a folder. `token_id`: the token whose place embeddings take.

        Raises `UnsupportedModelError` with the reason if there is none that works here.
        """
        self._token_id = token_id
        self._processor = load_processor(folder, "image", token_id)
        make = RULES.get(type(self._processor).__mro__[1].__name__)
        if make is None:
            raise UnsupportedModelError("videos are not served for its type")
        self._rules: VideoRules = make(self._processor, _settings(folder))
        self.placeholder: str = self._processor.video_token
        """The text that the chat template writes for a video."""
        self.resample = int(self._processor.image_processor.resample)
        """Pillow's filter that scales frames."""

    def chooser(self, options: VideoOptions) -> Choose:
        """Return what chooses the frames of a video and their size.

        It raises `UnusableMediaError` if they would become too many tokens.
        """

        def choose(facts: VideoFacts) -> tuple[list[int], Size]:
            indices = self._rules.indices(facts, options.max_frames)
            size = self._rules.frame_size(facts.size, len(indices))
            num_tokens = self._rules.num_tokens(size, len(indices))
            if options.max_tokens is not None and num_tokens > options.max_tokens:
                reason = (
                    f"becomes {num_tokens} tokens, and the model takes {options.max_tokens} in all"
                )
                raise UnusableMediaError("too_long", reason)
            return indices, size

        return choose

    def prepare(self, video: Video) -> "tuple[str, int, Mapping[str, np.ndarray[Any, Any]]]":
        """Return the text of a video, how many placeholder tokens it has, and the tensors.

        The first axis of each tensor has the groups of frames. Raises what the processor raises.
        """
        tensors, text = self._rules.tensors(video), self._text(video)
        num_tokens = self._processor.tokenizer.encode(text, add_special_tokens=False).count(
            self._token_id
        )
        if num_tokens != self._rules.num_tokens(video.frames[0].size, len(video.frames)):
            raise UnsupportedModelError("the placeholders of its processor are not its model's")
        return text, num_tokens, tensors

    def cut(
        self, num_tokens: int, arrays: "Mapping[str, np.ndarray[Any, Any]]"
    ) -> "list[tuple[int, Mapping[str, np.ndarray[Any, Any]]]]":
        """Cut what `prepare` returns: the tokens and the tensors of each group of frames."""
        number = len(arrays["pixel_values"])
        return [
            (num_tokens // number, {name: array[i] for name, array in arrays.items()})
            for i in range(number)
        ]

    def _text(self, video: Video) -> str:
        """Return what transformers' own code puts in the place of the placeholder."""
        from transformers.video_utils import VideoMetadata

        metadata = VideoMetadata(
            video.facts.num_frames,
            fps=video.facts.rate,
            duration=video.facts.seconds,
            frames_indices=list(video.indices),
        )
        inputs = {**self._rules.text_inputs(video), "video_metadata": [metadata]}
        return str(self._processor.replace_video_token(inputs, 0))


def _settings(folder: Path) -> JsonObject:
    """Return a folder's own settings for videos; empty if it has none but those for images.

    SmolVLM2 has them among those for images.
    """
    whole, alone, images = (
        JsonObject(str(folder / name), read_json(folder / name) or {})
        for name in ("processor_config.json", VIDEO_CONFIG, "preprocessor_config.json")
    )
    nested = whole.section("video_processor")
    if "video_sampling" in images.values and not (nested.values or alone.values):
        return images
    return nested if nested.values else alone
