"""Finds the images that the messages of a request refer to, in user messages and tools' results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from stonechat_server.errors import APIError, format_path, invalid, unsupported
from stonechat_server.images.data_urls import is_data_url
from stonechat_server.prompt.template_messages import is_parts, no_media
from stonechat_server.schema.messages import (
    FilePart,
    FunctionMessage,
    ImagePart,
    MediaPart,
    Message,
    ToolMessage,
    UserMessage,
)

MAX_SHOWN = 60
TOOL_IMAGES = frozenset({"image_url", "input_image"})
"""The types of images in a tool's result: of chat completions, and of Responses."""


@dataclass(frozen=True, slots=True)
class ImageReference:
    """An image of a request, at `path` in its chat messages."""

    path: str
    part: ImagePart | FilePart

    @property
    def detail(self) -> Literal["auto", "low", "high"]:
        """How closely the model looks at it: auto, low or high."""
        part = self.part
        given = part.image_url.detail if isinstance(part, ImagePart) else part.file.detail
        return "high" if given == "original" else given or "auto"

    @property
    def url(self) -> str | None:
        """The URL; None for a file."""
        return self.part.image_url.url if isinstance(self.part, ImagePart) else None

    @property
    def num_characters(self) -> int:
        """How many of the body's characters the image itself is."""
        url = self.url
        return len(url) if url is not None and is_data_url(url) else 0

    def shorten(self) -> None:
        """Leave only the beginning of a long URL: the image itself is neither kept nor logged."""
        if isinstance(self.part, ImagePart):
            self.part.image_url.url = shortened(self.part.image_url.url)


def shortened(url: str) -> str:
    """A URL as logs and the ledger have it: of a `data:` URL, its beginning and its length."""
    if len(url) <= MAX_SHOWN or not is_data_url(url):
        return url
    return f"{url[:MAX_SHOWN].partition(',')[0]},... ({len(url)} characters)"


def find_images(messages: Sequence[Message]) -> list[ImageReference]:
    """The images in messages, in order. Parts in results of tools become typed.

    Raises `APIError` 400 for a part of an image that is not well made or in another message, and
    for audio and video.
    """
    return [
        ImageReference(f"messages[{i}].content[{j}]", part)
        for i, message in enumerate(messages)
        if isinstance(message.content, list | dict)
        for j, part in _parts(message, f"messages[{i}].content")
    ]


def _parts(message: Message, path: str) -> Iterator[tuple[int, ImagePart | FilePart]]:
    if isinstance(message, ToolMessage | FunctionMessage):
        given = message.content if isinstance(message.content, list) else [message.content]
        if is_parts(given) and any(_is_image(part) for part in given):
            message.content = [_typed(part, f"{path}[{j}]") for j, part in enumerate(given)]
    takes_images = isinstance(message, UserMessage | ToolMessage | FunctionMessage)
    for j, part in enumerate(message.content or ()):
        if isinstance(part, MediaPart):
            raise no_media(f"{path}[{j}]")
        if not isinstance(part, ImagePart | FilePart):
            continue
        if not takes_images:
            raise unsupported(
                f"{path}[{j}]",
                f"'{path}[{j}]': images may be in user messages and in results of tools, not in "
                f"messages of the role {message.role}.",
            )
        yield j, part


def _is_image(part: object) -> bool:
    return isinstance(part, dict) and part["type"] in TOOL_IMAGES


def _typed(part: Any, path: str) -> Any:
    """The part of a tool's result as a part of a chat message, if it is an image."""
    if not _is_image(part):
        return part
    try:
        if part.get("file_id") is not None:
            file = {"file_id": part["file_id"], "detail": part.get("detail")}
            return FilePart.model_validate({"type": "file", "file": file})
        url = part.get("image_url")
        if isinstance(url, str):
            url = {"url": url, "detail": part.get("detail")}
        return ImagePart.model_validate({"type": "image_url", "image_url": url})
    except ValidationError as error:
        raise _malformed(error, path) from error


def _malformed(error: ValidationError, path: str) -> APIError:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = f"{path}.{format_path(detail['loc'])}"
    if detail["type"] == "model_type":  # pydantic's own text names a class of Python
        reason = "It must be an object with a url, or a URL."
        return invalid(where, f"Invalid '{where}': {reason}")
    return invalid(where, f"Invalid '{where}': {detail['msg']}.")
