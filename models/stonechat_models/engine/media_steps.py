"""What media add to the steps of the engine: their embeddings, and rotary positions."""

import logging
from collections import abc
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from stonechat_models.backends.base import (
    Array,
    CausalModel,
    ForwardBatch,
    HostBatch,
    MediaModel,
    StepMedia,
)
from stonechat_models.engine.placement import Moment, Placement
from stonechat_models.engine.prompts.image_runs import visible_ends
from stonechat_models.engine.prompts.media import PromptMedia
from stonechat_models.engine.sequence import Scheduled, SequenceGroup
from stonechat_models.errors import StepError
from stonechat_models.media.features import FeatureStore, MediaFeatures
from stonechat_models.types import MediaInput, Modality

logger = logging.getLogger(__name__)

ENCODING_FAILED = "an image, a video or audio of this request cannot be encoded"


@dataclass(slots=True)
class Encodings:
    """Counts of what one tower did."""

    num_encoded: int = 0
    num_hits: int = 0
    """Those of requests that were encoded already."""
    seconds: float = 0.0


class MediaSteps:
    """Encodes the media that steps need, each once, and gives steps their embeddings."""

    def __init__(self, model: CausalModel, place: Placement, cache_bytes: int) -> None:
        images = model.info.images
        self.num_live = 0
        """Requests with media in the engine. Without any, no step comes here."""
        self.num_encoded = 0
        self._is_bidirectional = images is not None and images.bidirectional
        self._has_grid_positions = images is not None and images.has_grid_positions
        images_and_videos = Encodings()
        self._encodings: dict[Modality, Encodings] = {
            "image": images_and_videos,
            "video": images_and_videos,
            "audio": Encodings(),
        }
        self._timings: list[tuple[Modality, Moment, Moment]] = []
        """The start and the end of encodings whose time is not known yet."""
        self._model = cast(MediaModel, model)
        self._place = place
        self._store = FeatureStore(cache_bytes)

    def encodings(self, modality: Modality) -> Encodings:
        """Return the counts of a tower; its seconds as far as it is done."""
        while self._timings:
            timed, start, end = self._timings[0]
            seconds = self._place.seconds(start, end)
            if seconds is None:
                break
            self._encodings[timed].seconds += seconds
            del self._timings[0]
        return self._encodings[modality]

    def of_request(self, media: abc.Sequence[MediaInput]) -> PromptMedia:
        """Count a request with media in. `num_live` is lowered when it ends."""
        self.num_live += 1
        return PromptMedia(media, bidirectional=self._is_bidirectional)

    def prepare(
        self, items: abc.Sequence[Scheduled]
    ) -> tuple[list[SequenceGroup], list[Scheduled]]:
        """Get the features and positions that a step needs.

        Returns the requests whose media cannot be encoded, and the items that have to wait for a
        later step: only one image, clip or piece is encoded now, so that other sequences
        do not wait for all. Neither may be part of the step.
        """
        self._drop_features(items)
        failed: dict[str, SequenceGroup] = {}
        waiting: list[Scheduled] = []
        num_encoded = self.num_encoded
        for item in items:
            group = item.sequence.group
            media, request_id = group.media, group.request.request_id
            if media is None or request_id in failed:
                continue
            try:
                if not self._prepare(item, media, num_encoded + 1):
                    waiting.append(item)
            except Exception:  # whatever the model's own code raises
                logger.exception("a medium of request %s cannot be encoded", request_id)
                failed[request_id] = group
        return list(failed.values()), waiting

    def add_to(self, batch: ForwardBatch | HostBatch, items: abc.Sequence[Scheduled]) -> None:
        """Give a packed step the embeddings and the positions of its media.

        `prepare` has got them for these items just before. Nothing is encoded here.
        """
        rows: list[npt.NDArray[np.int64]] = []
        parts: list[tuple[MediaFeatures, slice]] = []
        num_tokens = 0
        for item in items:
            first, end = item.start - item.num_again, item.context_len
            media = item.sequence.group.media
            if media is not None and first < media.end:
                for place in media.places_in(first, end):
                    row = num_tokens + place.start - first
                    rows.append(np.arange(row, row + place.length))
                    assert place.medium in media.features, "the step is prepared"
                    features = media.features[place.medium]
                    parts.append((features, slice(place.first, place.first + place.length)))
            num_tokens += end - first
        positions = self._rope_positions(items) if self._has_grid_positions else None
        if not rows:
            if positions is not None:
                self._place.set_rope_positions(batch, positions)
            return
        batch.media = StepMedia(
            rows=self._place.array(np.concatenate(rows)),
            embeddings=self._place.joined([f.embeddings[part] for f, part in parts]),
            layer_embeddings=self._layer_embeddings(parts),
            rope_positions=None if positions is None else self._place.array(positions),
            visible_ends=self._visible_ends(items) if self._is_bidirectional else None,
        )

    def _prepare(self, item: Scheduled, media: PromptMedia, most: int) -> bool:
        """Get what an item needs, as long as no more than `most` media are encoded in all.

        Return whether all of it is there.
        """
        sequence = item.sequence
        if self._has_grid_positions and media.positions is None:
            prompt = sequence.group.request.prompt_token_ids
            media.positions, media.delta = self._model.media_positions(prompt, media.media)
        for place in media.places_in(self._first(item), item.context_len):
            if self.num_encoded >= most and not self._is_known(media, place.medium):
                return False
            self._features(media, place.medium)
        return True

    def _first(self, item: Scheduled) -> int:
        """Return the first token that the item computes, those again of a lost state included."""
        is_lost = self._model.info.keeps_state and item.sequence.num_state_tokens != item.start
        return 0 if is_lost else item.start

    def _drop_features(self, items: abc.Sequence[Scheduled]) -> None:
        """Let go of the features of media that no sequence of a request needs any more.

        Choices that wait to share the prompt begin with its last token.
        """
        groups = {
            item.sequence.group
            for item in items
            if (media := item.sequence.group.media) is not None and media.features
        }
        if not groups:
            return
        firsts = {item.sequence: self._first(item) for item in items}
        for group in groups:
            running = [s for s in group.sequences if s.block_table]
            needs = [firsts.get(sequence, sequence.num_scheduled) for sequence in running]
            if group.followers or group.prompt_blocks:
                needs.append(len(group.request.prompt_token_ids) - 1)
            assert group.media is not None
            group.media.drop_features(min(needs))

    def _is_known(self, media: PromptMedia, index: int) -> bool:
        """Whether a medium is encoded already."""
        content_hash = media.media[index].content_hash
        return index in media.features or self._store.holds(content_hash)

    def _features(self, media: PromptMedia, index: int) -> MediaFeatures:
        """Return the features of a medium, which the request then holds."""
        features = media.features.get(index)
        if features is not None:
            return features
        medium = media.media[index]
        features = self._store.find(medium.content_hash)
        if features is None:
            features = self._encode(medium)
        else:
            self._encodings[medium.modality].num_hits += 1
        num_embeddings = len(features.embeddings)
        if num_embeddings != medium.num_tokens:
            raise StepError(
                f"the tower gives {num_embeddings} embeddings for {medium.modality} with "
                f"{medium.num_tokens} placeholders"
            )
        media.features[index] = features
        return features

    def _encode(self, medium: MediaInput) -> MediaFeatures:
        start = self._place.now()
        features = self._model.encode_media(medium)
        self._timings.append((medium.modality, start, self._place.now()))
        self.num_encoded += 1
        self._encodings[medium.modality].num_encoded += 1
        self._store.insert(medium.content_hash, features)
        return features

    def _layer_embeddings(self, parts: list[tuple[MediaFeatures, slice]]) -> list[Array]:
        """Return what the first layers add. Audio adds nothing, also beside images that do."""
        num_layers = max(len(features.layer_embeddings) for features, _ in parts)
        return [
            self._place.joined(
                [
                    (f.layer_embeddings[i] if f.layer_embeddings else 0 * f.embeddings)[part]
                    for f, part in parts
                ]
            )
            for i in range(num_layers)
        ]

    def _visible_ends(self, items: abc.Sequence[Scheduled]) -> Array:
        ends = []
        for item in items:
            media = item.sequence.group.media
            first, runs = item.start - item.num_again, () if media is None else media.runs
            ends.append(visible_ends(runs, first, item.context_len))
        return self._place.array(np.concatenate(ends))

    def _rope_positions(self, items: abc.Sequence[Scheduled]) -> npt.NDArray[np.int64]:
        """Return int64[3, T]: the rotary positions of all tokens of a step."""
        parts: list[npt.NDArray[np.int64]] = []
        texts: list[tuple[int, int]] = []
        """The positions of text, which are equal in all dimensions, that are not in `parts` yet."""
        for item in items:
            first, end = item.start - item.num_again, item.context_len
            media = item.sequence.group.media
            if media is None:
                texts.append((first, end))
                continue
            assert media.positions is not None, "the step is prepared"
            num_prompt = media.positions.shape[1]
            if first < num_prompt:
                parts += [_text_positions(texts), media.positions[:, first:end]]
                texts, first = [], num_prompt
            if first < end:
                texts.append((first + media.delta, end + media.delta))
        return np.concatenate([*parts, _text_positions(texts)], axis=1)


def _text_positions(texts: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """Return the positions of these ranges, int64[3, …]."""
    if all(end - first == 1 for first, end in texts):  # decode steps
        numbers = np.array([first for first, _ in texts], dtype=np.int64)
    else:
        numbers = np.concatenate([np.arange(first, end) for first, end in texts])
    return np.broadcast_to(numbers, (3, len(numbers)))
