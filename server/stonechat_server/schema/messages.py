"""The messages of a conversation, by role, and the parts of their content."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import WireModel


class TextPart(WireModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class RefusalPart(WireModel):
    """A refusal that the assistant gave earlier in the conversation."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(WireModel):
    """An image. The schema has it so that the error can name it."""

    type: Literal["image_url"]
    image_url: dict[str, Any]


class AudioPart(WireModel):
    """Audio. The schema has it so that the error can name it."""

    type: Literal["input_audio"]
    input_audio: dict[str, Any]


class FilePart(WireModel):
    """A file. The schema has it so that the error can name it."""

    type: Literal["file"]
    file: dict[str, Any]


TextParts = Annotated[list[TextPart], Field(min_length=1)]
UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
UserParts = Annotated[list[UserPart], Field(min_length=1)]
AssistantPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
AssistantParts = Annotated[list[AssistantPart], Field(min_length=1)]


class FunctionCall(WireModel):
    """A function with its arguments as JSON text."""

    name: str
    arguments: str = ""


class CustomCall(WireModel):
    """A custom tool with its free-form input."""

    name: str
    input: str


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


ToolCall = Annotated[FunctionToolCall | CustomToolCall, Field(discriminator="type")]


class DeveloperMessage(WireModel):
    """Instructions; treated like a system message."""

    role: Literal["developer"]
    content: str | TextParts
    name: str | None = None


class SystemMessage(WireModel):
    """Instructions."""

    role: Literal["system"]
    content: str | TextParts
    name: str | None = None


class UserMessage(WireModel):
    """What the user says."""

    role: Literal["user"]
    content: str | UserParts
    name: str | None = None


class AssistantMessage(WireModel):
    """What the model said: text, a refusal, or tool calls."""

    role: Literal["assistant"]
    content: str | AssistantParts | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None


class ToolMessage(WireModel):
    """The result of the call `tool_call_id`."""

    role: Literal["tool"]
    content: str | TextParts
    tool_call_id: str
    name: str | None = None


class FunctionMessage(WireModel):
    """The result of a `function_call`, the older form of tool calls."""

    role: Literal["function"]
    content: str | None
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
