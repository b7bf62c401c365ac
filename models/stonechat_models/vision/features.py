"""What the vision tower makes of images. It is kept, so that the same image is encoded once."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary


@dataclass(slots=True, weakref_slot=True)
class ImageFeatures:
    """What the vision tower makes of an image, on the model's device: tensors of
    PyTorch, or arrays of numpy (float32) for a model that computes on the host."""

    embeddings: Any
    """[n, H]: one for each placeholder of the image."""
    layer_embeddings: Sequence[Any] = ()
    """Each [n, H]; see `StepImages` in `backends/base`."""

    @property
    def num_bytes(self) -> int:
        return sum(int(array.nbytes) for array in (self.embeddings, *self.layer_embeddings))


class FeatureStore:
    """The features of the images that were used last, by content hash, up to `max_bytes`.

    Features that anyone still holds are found too. They do not count, so the memory in use may be
    more than `max_bytes` while prompts with many images are computed.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Of the features that the store itself keeps."""
        self._kept: OrderedDict[bytes, ImageFeatures] = OrderedDict()
        self._known: WeakValueDictionary[bytes, ImageFeatures] = WeakValueDictionary()

    def holds(self, content_hash: bytes) -> bool:
        return content_hash in self._known

    def find(self, content_hash: bytes) -> ImageFeatures | None:
        features = self._known.get(content_hash)
        if features is not None:
            self._keep(content_hash, features)
        return features

    def insert(self, content_hash: bytes, features: ImageFeatures) -> None:
        self._known[content_hash] = features
        self._keep(content_hash, features)

    def _keep(self, content_hash: bytes, features: ImageFeatures) -> None:
        """Make this the image used last. Drop those that were used longest ago."""
        old = self._kept.pop(content_hash, None)
        if old is not None:
            self.num_bytes -= old.num_bytes
        if features.num_bytes > self.max_bytes:
            return
        self._kept[content_hash] = features
        self.num_bytes += features.num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= dropped.num_bytes
