"""What images add to the steps of the engine: their embeddings, and rotary positions."""

import logging
from collections import abc
from typing import cast

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import (
    Array,
    CausalModel,
    ForwardBatch,
    HostBatch,
    ImageModel,
    StepImages,
)
from stonechat_models.engine.image_runs import visible_ends
from stonechat_models.engine.placement import Moment, Placement
from stonechat_models.engine.prompt_images import PromptImages
from stonechat_models.engine.sequence import Scheduled, SequenceGroup
from stonechat_models.errors import StepError
from stonechat_models.model_info import ImageInfo
from stonechat_models.types import ImageInput
from stonechat_models.vision.features import FeatureStore, ImageFeatures

logger = logging.getLogger(__name__)

ENCODING_FAILED = "an image of this request cannot be encoded"


class ImageSteps:
    """Encodes the images that steps need, each once, and gives steps their embeddings."""

    def __init__(
        self, model: CausalModel, info: ImageInfo, place: Placement, cache_bytes: int
    ) -> None:
        self.num_live = 0
        """Requests with images in the engine. Without any, no step comes here."""
        self.num_encoded = self.num_hits = 0
        self._encode_seconds = 0.0
        self._timings: list[tuple[Moment, Moment]] = []
        """The start and the end of encodings whose time is not known yet."""
        self._model = cast(ImageModel, model)
        self._info = info
        self._place = place
        self._store = FeatureStore(cache_bytes)

    @property
    def encode_seconds(self) -> float:
        """Seconds of the vision tower, as far as it is done."""
        while self._timings and (seconds := self._place.seconds(*self._timings[0])) is not None:
            self._encode_seconds += seconds
            del self._timings[0]
        return self._encode_seconds

    def of_request(self, images: abc.Sequence[ImageInput]) -> PromptImages:
        """Count a request with images in. `num_live` is lowered when it ends."""
        self.num_live += 1
        return PromptImages(images, bidirectional=self._info.bidirectional)

    def prepare(
        self, items: abc.Sequence[Scheduled]
    ) -> tuple[list[SequenceGroup], list[Scheduled]]:
        """Get the features and positions that a step needs.

        Returns the requests whose images cannot be encoded, and the items that have to wait for a
        later step: only the first item with unknown images has them encoded, so that other
        sequences do not wait for all. Neither may be part of the step.
        """
        self._drop_features(items)
        failed: dict[str, SequenceGroup] = {}
        waiting: list[Scheduled] = []
        num_encoded = self.num_encoded
        for item in items:
            group = item.sequence.group
            images, request_id = group.images, group.request.request_id
            if images is None or request_id in failed:
                continue
            if self.num_encoded > num_encoded and self._must_encode(item, images):
                waiting.append(item)
                continue
            try:
                self._prepare(item, images)
            except Exception:  # whatever the model's own code raises
                logger.exception("an image of request %s cannot be encoded", request_id)
                failed[request_id] = group
        return list(failed.values()), waiting

    def add_to(self, batch: ForwardBatch | HostBatch, items: abc.Sequence[Scheduled]) -> None:
        """Give a packed step the embeddings and the positions of its images.

        `prepare` has got them for these items just before. Nothing is encoded here.
        """
        rows: list[npt.NDArray[np.int64]] = []
        parts: list[tuple[ImageFeatures, slice]] = []
        num_tokens = 0
        for item in items:
            first, end = item.start - item.num_again, item.context_len
            images = item.sequence.group.images
            if images is not None and first < images.end:
                for place in images.places_in(first, end):
                    row = num_tokens + place.start - first
                    rows.append(np.arange(row, row + place.length))
                    assert place.image in images.features, "the step is prepared"
                    features = images.features[place.image]
                    parts.append((features, slice(place.first, place.first + place.length)))
            num_tokens += end - first
        positions = self._rope_positions(items) if self._info.has_grid_positions else None
        if not rows:
            if positions is not None:
                self._place.set_rope_positions(batch, positions)
            return
        batch.images = StepImages(
            rows=self._place.array(np.concatenate(rows)),
            embeddings=self._place.joined([f.embeddings[part] for f, part in parts]),
            layer_embeddings=self._layer_embeddings(parts),
            rope_positions=None if positions is None else self._place.array(positions),
            visible_ends=self._visible_ends(items) if self._info.bidirectional else None,
        )

    def _prepare(self, item: Scheduled, images: PromptImages) -> None:
        sequence = item.sequence
        if self._info.has_grid_positions and images.positions is None:
            prompt = sequence.group.request.prompt_token_ids
            images.positions, images.delta = self._model.image_positions(prompt, images.images)
        for place in images.places_in(self._first(item), item.context_len):
            self._features(images, place.image)

    def _first(self, item: Scheduled) -> int:
        """Return the first token that the item computes, those again of a lost state included."""
        is_lost = self._model.info.keeps_state and item.sequence.num_state_tokens != item.start
        return 0 if is_lost else item.start

    def _drop_features(self, items: abc.Sequence[Scheduled]) -> None:
        """Let go of the features of images that no sequence of a request needs any more.

        Choices that wait to share the prompt begin with its last token.
        """
        groups = {
            item.sequence.group
            for item in items
            if (images := item.sequence.group.images) is not None and images.features
        }
        if not groups:
            return
        firsts = {item.sequence: self._first(item) for item in items}
        for group in groups:
            running = [s for s in group.sequences if s.block_table]
            needs = [firsts.get(sequence, sequence.num_scheduled) for sequence in running]
            if group.followers or group.prompt_blocks:
                needs.append(len(group.request.prompt_token_ids) - 1)
            assert group.images is not None
            group.images.drop_features(min(needs))

    def _must_encode(self, item: Scheduled, images: PromptImages) -> bool:
        """Whether the item has placeholders of an image that is not encoded yet."""
        return any(
            place.image not in images.features
            and not self._store.holds(images.images[place.image].content_hash)
            for place in images.places_in(self._first(item), item.context_len)
        )

    def _features(self, images: PromptImages, index: int) -> ImageFeatures:
        """Return the features of an image, which the request then holds."""
        features = images.features.get(index)
        if features is not None:
            return features
        image = images.images[index]
        features = self._store.find(image.content_hash)
        if features is None:
            features = self._encode(image)
        else:
            self.num_hits += 1
        num_embeddings = len(features.embeddings)
        if num_embeddings != image.num_tokens:
            raise StepError(
                f"the vision tower gives {num_embeddings} embeddings for an image with "
                f"{image.num_tokens} placeholders"
            )
        images.features[index] = features
        return features

    def _encode(self, image: ImageInput) -> ImageFeatures:
        start = self._place.now()
        features = self._model.encode_image(image)
        self._timings.append((start, self._place.now()))
        self.num_encoded += 1
        self._store.insert(image.content_hash, features)
        return features

    def _layer_embeddings(self, parts: list[tuple[ImageFeatures, slice]]) -> list[Array]:
        num_layers = len(parts[0][0].layer_embeddings)
        return [
            self._place.joined([f.layer_embeddings[i][part] for f, part in parts])
            for i in range(num_layers)
        ]

    def _visible_ends(self, items: abc.Sequence[Scheduled]) -> Array:
        ends = []
        for item in items:
            images = item.sequence.group.images
            first, runs = item.start - item.num_again, () if images is None else images.runs
            ends.append(visible_ends(runs, first, item.context_len))
        return self._place.array(np.concatenate(ends))

    def _rope_positions(self, items: abc.Sequence[Scheduled]) -> npt.NDArray[np.int64]:
        """Return int64[3, T]: the rotary positions of all tokens of a step."""
        parts: list[npt.NDArray[np.int64]] = []
        texts: list[tuple[int, int]] = []
        """The positions of text, which are equal in all dimensions, that are not in `parts` yet."""
        for item in items:
            first, end = item.start - item.num_again, item.context_len
            images = item.sequence.group.images
            if images is None:
                texts.append((first, end))
                continue
            assert images.positions is not None, "the step is prepared"
            num_prompt = images.positions.shape[1]
            if first < num_prompt:
                parts += [_text_positions(texts), images.positions[:, first:end]]
                texts, first = [], num_prompt
            if first < end:
                texts.append((first + images.delta, end + images.delta))
        return np.concatenate([*parts, _text_positions(texts)], axis=1)


def _text_positions(texts: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Return the positions of these ranges, int64[3, …]."""
    if all(end - first == 1 for first, end in texts):  # decode steps
        numbers = np.array([first for first, _ in texts], dtype=np.int64)
    else:
        numbers = np.concatenate([np.arange(first, end) for first, end in texts])
    return np.broadcast_to(numbers, (3, len(numbers)))
