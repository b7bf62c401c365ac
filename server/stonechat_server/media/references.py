"""Finds images, audio, videos and documents in the messages of a request: of users, and of tools'
results."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from stonechat_models import Modality
from stonechat_server.errors import APIError, format_path, invalid, unsupported
from stonechat_server.media.data_urls import holds_file, is_data_url
from stonechat_server.media.errors import FileKind
from stonechat_server.prompt.template_messages import TEXT_PARTS, is_parts, no_media
from stonechat_server.schema.messages import (
    AudioPart,
    AudioUrlPart,
    FilePart,
    FunctionMessage,
    ImageFilePart,
    ImagePart,
    Message,
    SourcePart,
    TextPart,
    ToolMessage,
    UserMessage,
    VideoPart,
    chat_part,
    with_contents,
)

MAX_SHOWN = 60
TOOL_FILES = frozenset({"image_url", "input_image", "file", "input_file"})
"""The types of images and files in a tool's result: of chat completions, and of Responses."""
TOOL_PARTS: dict[str, type[SourcePart]] = {
    "input_audio": AudioPart,
    "audio_url": AudioUrlPart,
    "video_url": VideoPart,
}
"""The other types of media there."""


@dataclass(slots=True)
class MediaReference:
    """An image, audio, a video or a document of a request, at `path` in its chat messages."""

    path: str
    part: SourcePart
    modality: FileKind | None
    """None for a `file` until it is read: its content says it."""
    content: bytes | None = None
    """The file itself, if it came beside the messages."""

    @property
    def detail(self) -> Literal["auto", "low", "high"]:
        """How closely the model looks at an image: auto, low or high."""
        given = None
        if isinstance(self.part, ImagePart):
            given = self.part.image_url.detail
        elif isinstance(self.part, FilePart):
            given = self.part.file.detail
        return "high" if given == "original" else given or "auto"

    @property
    def url(self) -> str | None:
        """The URL, if it has one."""
        if isinstance(self.part, ImagePart):
            return self.part.image_url.url
        if isinstance(self.part, VideoPart):
            return self.part.video_url.url
        if isinstance(self.part, FilePart):
            return self.part.file.file_url
        return self.part.audio_url.url if isinstance(self.part, AudioUrlPart) else None

    @property
    def data(self) -> str:
        """The file in base64, alone or in a `data:` URL; empty if it is elsewhere."""
        if isinstance(self.part, AudioPart):
            return self.part.input_audio.data
        if isinstance(self.part, FilePart) and self.part.file.file_data:
            return self.part.file.file_data
        url = self.url
        return url if url is not None and holds_file(url) else ""

    @property
    def num_bytes(self) -> int:
        """How much of the body the file is."""
        return len(self.data) or len(self.content or b"")

    def shorten(self) -> None:
        """Leave only the beginning of the data: the file itself is neither kept nor logged."""
        self.content = None
        match self.part:
            case ImagePart():
                self.part.image_url.url = shortened(self.part.image_url.url)
            case AudioUrlPart():
                self.part.audio_url.url = shortened(self.part.audio_url.url)
            case VideoPart():
                self.part.video_url.url = shortened(self.part.video_url.url)
            case AudioPart():
                self.part.input_audio.data = shortened_data(self.part.input_audio.data)
            case FilePart():
                file = self.part.file
                file.file_data = file.file_data and shortened_data(file.file_data)
                file.file_url = file.file_url and shortened(file.file_url)


def shortened(url: str) -> str:
    """A URL as logs and the ledger have it: of a `data:` URL, its beginning and its length."""
    if len(url) <= MAX_SHOWN or not holds_file(url):
        return url
    if not is_data_url(url):
        return shortened_data(url)
    return f"{url[:MAX_SHOWN].partition(',')[0]},... ({len(url)} characters)"


def shortened_data(data: str) -> str:
    """Base64 as logs and the ledger have it: its length."""
    return data if len(data) <= MAX_SHOWN else f"... ({len(data)} characters)"


def find_media(messages: Sequence[Message]) -> list[MediaReference]:
    """The media and documents in messages, in order. Parts in results of tools become typed.

    Raises `APIError` 400 for a part that is not well made or in another message.
    """
    return [
        MediaReference(f"messages[{i}].content[{j}]", part, _modality(part))
        for i, message in enumerate(messages)
        if isinstance(message.content, list | dict)
        for j, part in _parts(message, f"messages[{i}].content")
    ]


def _parts(message: Message, path: str) -> Iterator[tuple[int, SourcePart]]:
    if isinstance(message, ToolMessage | FunctionMessage):
        given = message.content if isinstance(message.content, list) else [message.content]
        if is_parts(given) and any(_is_media(part) for part in given):
            message.content = [_typed(part, f"{path}[{j}]") for j, part in enumerate(given)]
    takes_media = isinstance(message, UserMessage | ToolMessage | FunctionMessage)
    for j, part in enumerate(message.content or ()):
        if not isinstance(part, SourcePart):
            continue
        if not takes_media:
            raise unsupported(
                f"{path}[{j}]",
                f"'{path}[{j}]': images, audio, videos and files may be in user messages and in "
                f"results of tools, not in messages of the role {message.role}.",
            )
        yield j, part


def _modality(part: SourcePart) -> Modality | None:
    if isinstance(part, AudioPart | AudioUrlPart):
        return "audio"
    if isinstance(part, VideoPart):
        return "video"
    return "image" if isinstance(part, ImagePart | ImageFilePart) else None


def _is_media(part: object) -> bool:
    return isinstance(part, dict) and (part["type"] in TOOL_FILES or part["type"] in TOOL_PARTS)


def _typed(part: Any, path: str) -> Any:
    """The part of a tool's result as a part of a chat message, if it is one of media."""
    if not _is_media(part):
        if part["type"] not in TEXT_PARTS:
            raise no_media(path)
        return part
    try:
        if part["type"] in TOOL_PARTS:
            return TOOL_PARTS[part["type"]].model_validate(part)
        given: Any = chat_part(part)
        if given["type"] == "image_url":
            return ImagePart.model_validate(given)
        kind = ImageFilePart if part["type"] == "input_image" else FilePart
        return kind.model_validate(given)
    except ValidationError as error:
        raise _malformed(error, path) from error


def _malformed(error: ValidationError, path: str) -> APIError:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = f"{path}.{format_path(detail['loc'])}"
    if detail["type"] == "model_type":  # pydantic's own text names a class of Python
        reason = "It must be an object with a url, or a URL."
        if detail["loc"] == ("input_audio",):
            reason = "It must be an object with data and a format."
        elif detail["loc"] == ("file",):
            reason = "It must be an object with a file_id, file_data or a file_url."
        return invalid(where, f"Invalid '{where}': {reason}")
    return invalid(where, f"Invalid '{where}': {detail['msg']}.")


def with_documents(messages: Sequence[Message]) -> list[Message]:
    """Messages with the contents of documents in their place, once they are read.

    So their texts take part in all work on the prompt, as if the client had sent them.
    """
    return [
        message.model_copy(update={"content": list(with_contents(message.content))})
        if isinstance(message.content, list)
        else message
        for message in messages
    ]


def num_text_bytes(references: Sequence[MediaReference]) -> int:
    """About how many bytes the texts of documents have, once they are read."""
    parts = with_contents([reference.part for reference in references])
    return sum([len(part.text) for part in parts if isinstance(part, TextPart)])
