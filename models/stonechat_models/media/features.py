"""What towers make of images and audio. It is kept, so that the same file is encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from stonechat_models.media.recently_used import RecentlyUsed


@dataclass(slots=True, weakref_slot=True)
class MediaFeatures:
    """What a tower makes of an image or a clip, on the model's device: tensors of
    PyTorch, or arrays of numpy (float32) for a model that computes on the host."""

    embeddings: Any
    """[n, H]: one for each placeholder."""
    layer_embeddings: Sequence[Any] = ()
    """Each [n, H]; see `StepMedia` in `backends/base`."""

    @property
    def num_bytes(self) -> int:
        return sum(int(array.nbytes) for array in (self.embeddings, *self.layer_embeddings))


class FeatureStore:
    """The features of the media that were used last, by content hash, up to `max_bytes`.

    Features that anyone still holds are found too. They do not count, so the memory in use may be
    more than `max_bytes` while prompts with many media are computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: RecentlyUsed[MediaFeatures] = RecentlyUsed(max_bytes)
        self._known: WeakValueDictionary[bytes, MediaFeatures] = WeakValueDictionary()

    @property
    def num_bytes(self) -> int:
        """Of the features that the store itself keeps."""
        return self._kept.num_bytes

    def holds(self, content_hash: bytes) -> bool:
        return content_hash in self._known

    def find(self, content_hash: bytes) -> MediaFeatures | None:
        features = self._known.get(content_hash)
        if features is not None:
            self._kept.keep(content_hash, features)
        return features

    def insert(self, content_hash: bytes, features: MediaFeatures) -> None:
        self._known[content_hash] = features
        self._kept.keep(content_hash, features)
