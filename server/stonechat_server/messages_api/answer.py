"""The answer, and the events of its stream. Anthropic's types require the fields that are null."""

from typing import Literal

import msgspec

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBody(msgspec.Struct, tag_field="type", tag="text"):
    """Text for the user."""

    text: str
    citations: None = None


class ThinkingBody(msgspec.Struct, tag_field="type", tag="thinking"):
    """The model's reasoning. The signature is for the server that gets the block back."""

    thinking: str
    signature: str


class DirectCaller(msgspec.Struct, tag_field="type", tag="direct"):
    """The model itself."""


class ToolUseBody(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A call of a tool. `input` is a JSON object as the model wrote it."""

    id: str
    name: str
    input: msgspec.Raw
    caller: DirectCaller = msgspec.field(default_factory=DirectCaller)


BlockBody = TextBody | ThinkingBody | ToolUseBody


class OutputTokensDetails(msgspec.Struct):
    """What the output tokens are spent on."""

    thinking_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """The tokens so far. The three counts of input tokens add up to the prompt.

    `cache_read_input_tokens` were read from the prefix cache and `cache_creation_input_tokens` were
    added to it.
    """

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    server_tool_use: None = None


class MessageUsage(Usage, kw_only=True):
    """The usage in a message."""

    cache_creation: None = None
    inference_geo: None = None
    service_tier: Literal["standard"] = "standard"


def in_message(usage: Usage) -> MessageUsage:
    """The same usage as a message has it."""
    return MessageUsage(**msgspec.structs.asdict(usage))


class MessageAnswer(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """An answer; at the start of a stream it has no content yet."""

    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[BlockBody]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None
    usage: MessageUsage


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """More of a text block."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """More of a thinking block."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The signature of a thinking block, at its end."""

    signature: str


class InputJsonDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """More of the JSON text of a call's input."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The first event."""

    message: MessageAnswer


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins, without its content."""

    index: int
    content_block: BlockBody


class BlockDeltaEvent(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """A block goes on."""

    index: int
    delta: BlockDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block ends."""

    index: int


class StopBody(msgspec.Struct):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The answer's end, with the usage of the whole request."""

    delta: StopBody
    usage: Usage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""


MessageEvent = MessageStart | BlockStart | BlockDeltaEvent | BlockStop | MessageDelta | MessageStop


class TokenCount(msgspec.Struct):
    """The tokens of a prompt."""

    input_tokens: int
