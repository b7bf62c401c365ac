"""The messages of a conversation, by role, and the parts of their content.

An assistant's message takes whatever a client kept from an answer, of this server or another one.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, StringConstraints

from stonechat_server.schema.base import ListOf, WireModel

if TYPE_CHECKING:
    from stonechat_models import PreparedMedia


class TextPart(WireModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class DocumentText(TextPart):
    """A piece of a file's text, which others wrote: special tokens in it are text."""


class RefusalPart(WireModel):
    """A refusal that the assistant gave earlier in the conversation."""

    type: Literal["refusal"]
    refusal: str


class AnswerTextPart(WireModel):
    """A piece of an answer's text. Null is no text."""

    type: Literal["text", "output_text"]
    text: str | None


class ReasoningPart(WireModel):
    """A piece of an answer's reasoning; the text is among the unknown keys."""

    type: Literal["thinking", "reasoning", "reasoning_text", "redacted_thinking"]


Detail = Literal["auto", "low", "high", "original"]
Url = Annotated[str, StringConstraints(strip_whitespace=True)]
"""A URL. Space around it does not count."""


class ImageUrl(WireModel):
    """Where an image is: a `data:` URL that holds it, or an `https:` URL."""

    url: Url
    detail: Detail | None = None


class SourcePart(WireModel):
    """A part whose image, audio or video is loaded before the prompt is made."""

    _media: Any = PrivateAttr(None)

    @property
    def media(self) -> "PreparedMedia | None":
        """The image, audio or video, from when it is loaded until its request ends."""
        return self._media  # type: ignore[no-any-return]

    def set_media(self, media: "PreparedMedia | None") -> None:
        """Keep what the part refers to, or no longer."""
        self._media = media


def _with_url(value: object) -> object:
    """Some clients write the URL alone, without an object around it."""
    return {"url": value} if isinstance(value, str) else value


class ImagePart(SourcePart):
    """An image by its URL."""

    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_with_url)]


class AudioData(WireModel):
    """A file of audio in base64, or in a `data:` URL. What it holds counts, not `format`."""

    data: str
    format: str | None = None


class AudioPart(SourcePart):
    """Audio in the request itself."""

    type: Literal["input_audio"]
    input_audio: AudioData


class AudioUrl(WireModel):
    """Where audio is: a `data:` URL that holds it, or an `https:` URL."""

    url: Url


class AudioUrlPart(SourcePart):
    """Audio by its URL."""

    type: Literal["audio_url"]
    audio_url: Annotated[AudioUrl, BeforeValidator(_with_url)]


class VideoUrl(WireModel):
    """Where a video is: a `data:` URL that holds it, or an `https:` URL."""

    url: Url


class VideoPart(SourcePart):
    """A video by its URL."""

    type: Literal["video_url"]
    video_url: Annotated[VideoUrl, BeforeValidator(_with_url)]


class FileReference(WireModel):
    """A file of `/v1/files` by its id, one in the request itself (base64, or a `data:` URL), or one
    by its `https:` URL."""

    file_id: str | None = None
    file_data: str | None = None
    file_url: Url | None = None
    filename: str | None = None
    detail: Detail | None = None


class FilePart(SourcePart):
    """A file: an image, audio, a video or a document, whatever it holds."""

    type: Literal["file"]
    file: FileReference
    _contents: Any = PrivateAttr(None)

    @property
    def contents(self) -> "list[TextPart | SourcePart] | None":
        """The text of a document, and images of its pages; None for other files."""
        return self._contents  # type: ignore[no-any-return]

    def set_contents(self, contents: "list[TextPart | SourcePart] | None") -> None:
        """Keep what is read of a document, or no longer."""
        self._contents = contents


class ImageFilePart(FilePart):
    """A file, which must be an image: other endpoints than chat completions say so."""


def with_contents(parts: Iterable[object]) -> Iterator[object]:
    """Parts, with the contents of documents in their place."""
    for part in parts:
        contents = part.contents if isinstance(part, FilePart) else None
        yield from (part,) if contents is None else contents


TextParts = Annotated[ListOf[TextPart], Field(min_length=1)]


def chat_part(part: object) -> object:
    """A part as chat completions have it, if it is one of Responses: programs mix the two up."""
    if not isinstance(part, dict):
        return part
    match part.get("type"):
        case "input_text" | "output_text":
            return {**part, "type": "text"}
        case "input_video":
            return {**part, "type": "video_url"}
        case "input_image" if part.get("file_id") is not None:
            file = {key: part[key] for key in ("file_id", "detail") if key in part}
            return {"type": "file", "file": file}
        case "input_image":
            url = part.get("image_url")
            if isinstance(url, str):
                url = {"url": url, "detail": part.get("detail")}
            return {"type": "image_url", **({} if url is None else {"image_url": url})}
        case "input_file":
            return {"type": "file", "file": {k: v for k, v in part.items() if k != "type"}}
    return part


UserPart = Annotated[
    TextPart | ImagePart | AudioPart | AudioUrlPart | VideoPart | FilePart,
    Field(discriminator="type"),
    BeforeValidator(chat_part),
]
UserParts = Annotated[ListOf[UserPart], Field(min_length=1)]
"""Instructions are of text alone, but their errors name what they have instead."""
AssistantPart = Annotated[AnswerTextPart | RefusalPart | ReasoningPart, Field(discriminator="type")]


class FunctionCall(WireModel):
    """A function with its arguments, as a rule as JSON text; any other JSON is taken too."""

    name: str
    arguments: Any = ""


class CustomCall(WireModel):
    """A custom tool with its free-form input."""

    name: str
    input: str = ""


class FunctionToolCall(WireModel):
    """The model's call of a function tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class CustomToolCall(WireModel):
    """The model's call of a custom tool."""

    id: str
    type: Literal["custom"]
    custom: CustomCall


def _id_text(value: object) -> object:
    """Make a call's id text, also if it is a number or null."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value or ""


def _complete_call(call: object) -> object:
    """Give a call the type and the id that some servers leave out, or say in another way."""
    if not isinstance(call, dict):
        return call
    kind = call.get("type")
    if kind is None:
        kind = "function" if call.get("custom") is None else "custom"
    given = {key: value for key, value in call.items() if value is not None or key == kind}
    return given | {"type": kind, "id": _id_text(call.get("id"))}


ToolCall = Annotated[
    FunctionToolCall | CustomToolCall,
    Field(discriminator="type"),
    BeforeValidator(_complete_call),
]


class DeveloperMessage(WireModel):
    """Instructions; treated like a system message."""

    role: Literal["developer"]
    content: str | UserParts
    name: str | None = None


class SystemMessage(WireModel):
    """Instructions."""

    role: Literal["system"]
    content: str | UserParts
    name: str | None = None


class UserMessage(WireModel):
    """What the user says."""

    role: Literal["user"]
    content: str | UserParts
    name: str | None = None


class AssistantMessage(WireModel):
    """What the model said: text, a refusal, or tool calls."""

    role: Literal["assistant"]
    content: str | ListOf[AssistantPart] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    tool_calls: ListOf[ToolCall] | None = None
    function_call: FunctionCall | None = None


class ToolMessage(WireModel):
    """The result of the call `tool_call_id`. JSON that is no text is taken too."""

    role: Literal["tool"]
    content: Any = None
    tool_call_id: Annotated[str, BeforeValidator(_id_text)] = ""
    name: str | None = None


class FunctionMessage(WireModel):
    """The result of a `function_call`, the older form of tool calls."""

    role: Literal["function"]
    content: Any
    name: str


Message = Annotated[
    DeveloperMessage
    | SystemMessage
    | UserMessage
    | AssistantMessage
    | ToolMessage
    | FunctionMessage,
    Field(discriminator="role"),
]
