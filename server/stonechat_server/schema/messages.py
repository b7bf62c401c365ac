"""The messages of a conversation, by role, and the parts of their content.

An assistant's message takes whatever a client kept from an answer, of this server or another one.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stonechat_server.schema.base import ListOf, WireModel


class TextPart(WireModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


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


TextParts = Annotated[ListOf[TextPart], Field(min_length=1)]
UserPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
UserParts = Annotated[ListOf[UserPart], Field(min_length=1)]
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
    completed = {key: value for key, value in call.items() if value is not None}
    completed.setdefault("type", "custom" if "custom" in completed else "function")
    completed["id"] = _id_text(completed.get("id"))
    return completed


ToolCall = Annotated[
    FunctionToolCall | CustomToolCall,
    Field(discriminator="type"),
    BeforeValidator(_complete_call),
]


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
    content: str | ListOf[AssistantPart] | None = None
    name: str | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None
    tool_calls: ListOf[ToolCall] | None = None
    function_call: FunctionCall | None = None


class ToolMessage(WireModel):
    """The result of the call `tool_call_id`. JSON that is no text is taken too."""

    role: Literal["tool"]
    content: Any
    tool_call_id: Annotated[str, BeforeValidator(_id_text)]
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
