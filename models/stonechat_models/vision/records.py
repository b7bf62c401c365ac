"""What the server hands to the image processor, and gets back. Nothing here imports tensors."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from stonechat_models.types import ImageInput, ImageTensor

DEFAULT_MAX_PIXELS = 50_000_000


class ImageOptions(msgspec.Struct, frozen=True):
    """How an image is prepared."""

    detail: Literal["auto", "low", "high"] = "auto"
    """`low` scales the image down to at most 512 x 512 pixels. The others leave it to the model."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """A file with more pixels is refused before it is decoded."""


class PreparedImage(msgspec.Struct, frozen=True):
    """An image as the model takes it."""

    content_hash: bytes
    """16 bytes, of the file, the options and the processor's settings."""
    placeholder: str
    """The text that the chat template writes for an image. It is the same for all images."""
    text: str
    """What takes the place of the placeholder in the prompt's text."""
    num_tokens: int
    """How many placeholder tokens, `ImageInfo.token_id`, the text becomes."""
    width: int
    """Pixels of the file, turned upright."""
    height: int
    tensors: Mapping[str, ImageTensor]
    """The arguments of the model's `get_image_features` by name."""

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(len(tensor.data) for tensor in self.tensors.values())

    def placed(self, places: tuple[tuple[int, int], ...]) -> ImageInput:
        """Return the image of a request in whose prompt it has these runs of placeholders."""
        return ImageInput(self.content_hash, places, self.tensors)


class Task(msgspec.Struct, frozen=True):
    """An image file to prepare. `content_hash` comes back with the image."""

    data: bytes
    options: ImageOptions
    content_hash: bytes


class Answer(msgspec.Struct, frozen=True):
    """The prepared image; or what is wrong with the image; or why none can be prepared."""

    image: PreparedImage | None = None
    kind: str = ""
    reason: str = ""
    failure: str = ""
