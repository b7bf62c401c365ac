"""The images of a prompt: where their placeholders are, and what they add to block hashes."""

from bisect import bisect_right
from collections import abc
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stonechat_models.engine.image_runs import chunk_end, image_runs, longest_run
from stonechat_models.errors import InvalidParamsError
from stonechat_models.model_info import ModelInfo
from stonechat_models.types import GenerateRequest, ImageInput
from stonechat_models.vision.features import ImageFeatures


class Place(NamedTuple):
    """A run of placeholders of one image, or a part of it: tokens `start:start + length`."""

    start: int
    length: int
    image: int
    first: int
    """Which of the image's embeddings the first of these tokens gets."""


class PromptImages:
    """The images of a request in the engine."""

    def __init__(self, images: abc.Sequence[ImageInput], *, bidirectional: bool = False) -> None:
        """`bidirectional`: see `ImageInfo`."""
        self.images = images
        self.places = sorted(_places(images))
        self._starts = [place.start for place in self.places]
        self.end = self.places[-1].start + self.places[-1].length
        """The token after the last placeholder."""
        self.runs = image_runs(images) if bidirectional else []
        """Those that are computed in one step each."""
        self.features: dict[int, ImageFeatures] = {}
        """Those of images that are being computed, by the image's index. They are let go as soon
        as no sequence of the request needs them."""
        self.positions: npt.NDArray[np.int64] | None = None
        """int64[3, P]: the rotary positions of the prompt, once a step needs them (M-RoPE)."""
        self.delta = 0
        """What the rotary position of a token after the prompt is above its index."""

    def places_in(self, start: int, end: int) -> abc.Iterator[Place]:
        """Yield the parts of places that lie within the tokens `start:end`."""
        for i in range(max(0, bisect_right(self._starts, start) - 1), len(self.places)):
            place = self.places[i]
            if place.start >= end:
                return
            first = max(start, place.start)
            length = min(end, place.start + place.length) - first
            if length > 0:
                yield Place(first, length, place.image, place.first + first - place.start)

    def drop_features(self, first: int) -> None:
        """Let go of the features of images that end at or before the token `first`."""
        for index in [*self.features]:
            if max(start + length for start, length in self.images[index].places) <= first:
                del self.features[index]

    def content_of(self, start: int, end: int) -> bytes:
        """Return what tells the tokens `start:end` from others with the same ids.

        A token of a run depends on all images of the run.
        """
        first, last = start, end
        for run_start, run_end in self.runs:
            if run_start < end and start < run_end:
                first, last = min(first, run_start), max(last, run_end)
        return b"".join(
            self.images[place.image].content_hash
            + np.array([place.start - start, place.length, place.first], dtype="<i8").tobytes()
            for place in self.places_in(first, last)
        )

    def num_whole(self, start: int, num_tokens: int) -> int:
        """Return how many of the `num_tokens` from `start` on a step computes: only whole runs."""
        return chunk_end(self.runs, start, start + num_tokens) - start


def check_images(request: GenerateRequest, model: ModelInfo) -> None:
    """Raise `InvalidParamsError` if the model takes no images, or not in these places."""
    info = model.images
    if info is None:
        reason = model.image_refusal or "it is a model of text alone"
        raise InvalidParamsError("messages", f"{model.name} takes no images: {reason}")
    token_ids, end = request.prompt_token_ids, 0
    for place in sorted(_places(request.images)):
        if place.length < 1 or place.start < end or place.start + place.length > len(token_ids):
            raise InvalidParamsError(
                "messages", f"the placeholders of image {place.image} are not within the prompt"
            )
        end = place.start + place.length
        if any(token_id != info.token_id for token_id in token_ids[place.start : end]):
            raise InvalidParamsError(
                "messages",
                f"image {place.image} takes the place of tokens that are not placeholders of "
                f"images (id {info.token_id})",
            )
    if info.has_grid_positions and _touch(request.images):
        raise InvalidParamsError(
            "messages", "two images follow each other without the text that the model needs between"
        )
    if any(not image.places for image in request.images):
        raise InvalidParamsError("messages", "an image has no placeholder in the prompt")
    if info.bidirectional:
        _check_runs(longest_run(image_runs(request.images)), request, model)


def _touch(images: abc.Sequence[ImageInput]) -> bool:
    """Whether an image follows another without a token between."""
    starts = {place.start for place in _places(images)}
    return any(place.start + place.length in starts for place in _places(images))


def _check_runs(num_tokens: int, request: GenerateRequest, model: ModelInfo) -> None:
    """Refuse an image that fits in no step. Beside it, each other sequence has a token."""
    most = model.max_batch_tokens - model.max_num_seqs
    if num_tokens > most:
        raise InvalidParamsError(
            "messages",
            f"an image of {num_tokens} tokens is computed in one step, and a step has room for "
            f"{most}: the server needs --max-batch-tokens {num_tokens + model.max_num_seqs}",
        )
    if request.params.prompt_logprobs is not None and num_tokens > model.max_prompt_rows:
        raise InvalidParamsError(
            "prompt_logprobs",
            f"with this model, prompt_logprobs is for images of at most {model.max_prompt_rows} "
            f"tokens, not {num_tokens}",
        )


def text_tokens(request: GenerateRequest) -> list[int]:
    """Return the prompt's tokens that are in no image."""
    text: list[int] = []
    end = 0
    for place in sorted(_places(request.images)):
        text += request.prompt_token_ids[end : place.start]
        end = place.start + place.length
    return [*text, *request.prompt_token_ids[end:]]


def _places(images: abc.Sequence[ImageInput]) -> abc.Iterator[Place]:
    for index, image in enumerate(images):
        first = 0
        for start, length in image.places:
            yield Place(start, length, index, first)
            first += length
