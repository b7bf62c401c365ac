"""The items of a request's `input`, and the parts of their content.

Each kind that is refused has a model of its own, so that the error can name it.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stonechat_server.responses_api.tools import ToolParam
from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.messages import AudioData, Detail, Url


class InputText(WireModel):
    """A piece of text, of a request or of an answer that is given back."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class Refusal(WireModel):
    """A refusal that the assistant gave earlier in the conversation."""

    type: Literal["refusal"]
    refusal: str


class InputImage(WireModel):
    """An image: a `data:` or `https:` URL, or a file of `/v1/files`."""

    type: Literal["input_image"]
    image_url: Url | None = None
    file_id: str | None = None
    detail: Detail | None = None


class InputAudio(WireModel):
    """Audio in the request itself."""

    type: Literal["input_audio"]
    input_audio: AudioData


class InputFile(WireModel):
    """A file: of `/v1/files`, in the request itself, or by its URL."""

    type: Literal["input_file"]
    file_id: str | None = None
    file_data: str | None = None
    file_url: Url | None = None
    filename: str | None = None
    detail: Detail | None = None


class OtherPart(WireModel):
    """A part of another API: refused."""

    type: Literal["computer_screenshot", "image_url", "audio_url", "file"]


Part = Annotated[
    InputText | Refusal | InputImage | InputAudio | InputFile | OtherPart,
    Field(discriminator="type"),
]
Content = str | ListOf[Part]


class Message(WireModel):
    """What somebody says. `type` may be left out."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: str | None = None


class FunctionCall(WireModel):
    """The model's call of a function. `namespace` groups functions."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class CustomToolCall(WireModel):
    """The model's call of a custom tool."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class CallOutput(WireModel):
    """The result of the call `call_id`."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Content
    name: str | None = None
    namespace: str | None = None
    id: str | None = None
    status: str | None = None


class SummaryText(WireModel):
    """A part of a reasoning item's summary."""

    type: Literal["summary_text"]
    text: str


class ReasoningText(WireModel):
    """A part of a reasoning item's content."""

    type: Literal["reasoning_text", "text"]
    text: str


class Reasoning(WireModel):
    """The model's reasoning before an answer."""

    type: Literal["reasoning"]
    summary: ListOf[SummaryText] | None = None
    content: ListOf[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: str | None = None
    status: str | None = None


class ItemReference(WireModel):
    """An item of an earlier answer, by its id."""

    type: Literal["item_reference"]
    id: str


class AdditionalTools(WireModel):
    """Tools beside those of the request: Codex lists its own so."""

    type: Literal["additional_tools"]
    tools: ListOf[ToolParam]
    role: str | None = None
    id: str | None = None


class ShellCall(WireModel):
    """A call of a tool of another service that ran on the client's machine: that of a function."""

    type: Literal["local_shell_call", "shell_call", "apply_patch_call"]
    action: Any = None
    operation: Any = None
    call_id: str | None = None
    id: str | None = None
    status: str | None = None


class ShellOutput(WireModel):
    """The result of such a call, as text or as any JSON."""

    type: Literal["local_shell_call_output", "shell_call_output", "apply_patch_call_output"]
    output: Any = None
    call_id: str | None = None
    id: str | None = None
    status: str | None = None
    max_output_length: Any = None


class HostedItem(WireModel):
    """A call that another service ran itself, or its result: left out."""

    type: Literal[
        "file_search_call",
        "web_search_call",
        "computer_call",
        "computer_call_output",
        "image_generation_call",
        "code_interpreter_call",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "tool_search_call",
        "tool_search_output",
        "configuration_update",
    ]
    id: str | None = None


class OpaqueItem(WireModel):
    """A part of the conversation that only another service can read: refused."""

    type: Literal["compaction", "compaction_trigger", "program", "program_output"]


def _with_type(item: object) -> object:
    """Give a message, or a reference, the type that it may leave out."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    kind = "message" if "role" in item else "item_reference" if "id" in item else None
    return item if kind is None else {**item, "type": kind}


Item = Annotated[
    Message
    | FunctionCall
    | CustomToolCall
    | CallOutput
    | Reasoning
    | ItemReference
    | AdditionalTools
    | ShellCall
    | ShellOutput
    | HostedItem
    | OpaqueItem,
    Field(discriminator="type"),
    BeforeValidator(_with_type),
]
