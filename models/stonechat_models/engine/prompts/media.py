"""The media of a prompt: where their placeholders are, and their block hashes."""

from bisect import bisect_right
from collections import abc
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stonechat_models.engine.prompts.image_runs import chunk_end, image_runs, longest_run
from stonechat_models.errors import InvalidParamsError
from stonechat_models.media.features import MediaFeatures
from stonechat_models.model_info import ModelInfo
from stonechat_models.types import GenerateRequest, MediaInput


class Place(NamedTuple):
    """A run of placeholders of one medium, or a part of it: tokens `start:start + length`."""

    start: int
    length: int
    medium: int
    first: int
    """Which of the medium's embeddings the first of these tokens gets."""


class PromptMedia:
    """The media of a request in the engine: images, audio clips and pieces of videos."""

    def __init__(self, media: abc.Sequence[MediaInput], *, bidirectional: bool = False) -> None:
        """`bidirectional`: see `ImageInfo`."""
        self.media = media
        self.places = sorted(_places(media))
        self._starts = [place.start for place in self.places]
        self.end = self.places[-1].start + self.places[-1].length
        """The token after the last placeholder."""
        self.runs = image_runs(_seen(media)) if bidirectional else []
        """Those that are computed in one step each."""
        self.features: dict[int, MediaFeatures] = {}
        """Those of media that are being computed, by the medium's index. They are let go as soon
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
                yield Place(first, length, place.medium, place.first + first - place.start)

    def drop_features(self, first: int) -> None:
        """Let go of the features of media that end at or before the token `first`."""
        for index in [*self.features]:
            if max(start + length for start, length in self.media[index].places) <= first:
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
            self.media[place.medium].content_hash
            + np.array([place.start - start, place.length, place.first], dtype="<i8").tobytes()
            for place in self.places_in(first, last)
        )

    def num_whole(self, start: int, num_tokens: int) -> int:
        """Return how many of the `num_tokens` from `start` on a step computes: only whole runs."""
        return chunk_end(self.runs, start, start + num_tokens) - start


def check_media(request: GenerateRequest, model: ModelInfo) -> None:
    """Raise `InvalidParamsError` if the model takes no such media, or not in these places."""
    token_ids, placeholders, end = request.prompt_token_ids, model.media_token_ids, 0
    for medium in request.media:
        if medium.modality not in placeholders:
            raise InvalidParamsError("messages", _refusal(medium, model))
        if not medium.places:
            raise InvalidParamsError("messages", f"the {medium.modality} has no placeholder")
    for place in sorted(_places(request.media)):
        modality = request.media[place.medium].modality
        what = f"{modality} {place.medium}"
        if place.length < 1 or place.start < end or place.start + place.length > len(token_ids):
            raise InvalidParamsError(
                "messages", f"the placeholders of {what} are not within the prompt"
            )
        end = place.start + place.length
        token_id = placeholders[modality]
        if any(other != token_id for other in token_ids[place.start : end]):
            raise InvalidParamsError(
                "messages",
                f"{what} takes the place of tokens that are not placeholders (id {token_id})",
            )
    if model.images is None:
        return
    images = [medium for medium in request.media if medium.modality == "image"]
    if model.images.has_grid_positions and _touch(images):
        raise InvalidParamsError(
            "messages", "two images follow each other without the text that the model needs between"
        )
    if model.images.bidirectional:
        _check_runs(longest_run(image_runs(_seen(request.media))), request, model)


def _refusal(medium: MediaInput, model: ModelInfo) -> str:
    reason, noun = model.image_refusal, "images"
    if medium.modality == "audio":
        reason, noun = model.audio_refusal, "audio"
    elif medium.modality == "video":
        reason, noun = model.video_refusal, "videos"
    return f"{model.name} takes no {noun}: {reason or f'it is not a model for {noun}'}"


def _seen(media: abc.Sequence[MediaInput]) -> list[MediaInput]:
    """Images and pieces of videos."""
    return [medium for medium in media if medium.modality != "audio"]


def _touch(images: abc.Sequence[MediaInput]) -> bool:
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
    """Return the prompt's tokens that are no placeholders."""
    text: list[int] = []
    end = 0
    for place in sorted(_places(request.media)):
        text += request.prompt_token_ids[end : place.start]
        end = place.start + place.length
    return [*text, *request.prompt_token_ids[end:]]


def _places(media: abc.Sequence[MediaInput]) -> abc.Iterator[Place]:
    for index, medium in enumerate(media):
        first = 0
        for start, length in medium.places:
            yield Place(start, length, index, first)
            first += length
