"""The events of a stream. `type` is also the name of the event.

`output_index` is the place of an item in the answer, `content_index` and `summary_index` that of a
part in its item.
"""

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.responses_api.answer import (
    Item,
    OutputText,
    ReasoningText,
    Response,
    SummaryText,
)
from stonechat_server.schema.responses import TokenLogprobBody


class Event(msgspec.Struct, kw_only=True, tag_field="type"):
    """Any event. `sequence_number` counts the events of a stream from 0."""

    sequence_number: int


class Created(Event, kw_only=True, tag="response.created"):
    """The first event."""

    response: Response


class InProgress(Event, kw_only=True, tag="response.in_progress"):
    """Generation has begun."""

    response: Response


class Completed(Event, kw_only=True, tag="response.completed"):
    """The answer is complete."""

    response: Response


class Incomplete(Event, kw_only=True, tag="response.incomplete"):
    """A limit has cut the answer."""

    response: Response


class Failed(Event, kw_only=True, tag="response.failed"):
    """The server could not finish the answer."""

    response: Response


class StreamError(Event, kw_only=True, tag="error"):
    """The server could not begin the answer."""

    code: str | None
    message: str
    param: str | None


class ItemAdded(Event, kw_only=True, tag="response.output_item.added"):
    """An item begins."""

    output_index: int
    item: Item


class ItemDone(Event, kw_only=True, tag="response.output_item.done"):
    """An item is complete, or cut by a limit."""

    output_index: int
    item: Item


class _ItemEvent(Event, kw_only=True):
    """An event about one item."""

    item_id: str
    output_index: int


class PartAdded(_ItemEvent, kw_only=True, tag="response.content_part.added"):
    """A part of a message, or of reasoning, begins."""

    content_index: int = 0
    part: OutputText | ReasoningText


class PartDone(_ItemEvent, kw_only=True, tag="response.content_part.done"):
    """A part is complete."""

    content_index: int = 0
    part: OutputText | ReasoningText


class _Delta(_ItemEvent, kw_only=True):
    """A piece of text. `obfuscation` hides its length."""

    delta: str
    obfuscation: str | UnsetType = UNSET


class TextDelta(_Delta, kw_only=True, tag="response.output_text.delta"):
    """A piece of a message."""

    content_index: int = 0
    logprobs: list[TokenLogprobBody]


class TextDone(_ItemEvent, kw_only=True, tag="response.output_text.done"):
    """The whole text of a message."""

    content_index: int = 0
    text: str
    logprobs: list[TokenLogprobBody]


class ReasoningDelta(_Delta, kw_only=True, tag="response.reasoning_text.delta"):
    """A piece of reasoning."""

    content_index: int = 0


class ReasoningDone(_ItemEvent, kw_only=True, tag="response.reasoning_text.done"):
    """The whole reasoning."""

    content_index: int = 0
    text: str


class SummaryPartAdded(_ItemEvent, kw_only=True, tag="response.reasoning_summary_part.added"):
    """A summary begins."""

    summary_index: int = 0
    part: SummaryText


class SummaryPartDone(_ItemEvent, kw_only=True, tag="response.reasoning_summary_part.done"):
    """A summary is complete."""

    summary_index: int = 0
    part: SummaryText


class SummaryDelta(_Delta, kw_only=True, tag="response.reasoning_summary_text.delta"):
    """A piece of a summary."""

    summary_index: int = 0


class SummaryDone(_ItemEvent, kw_only=True, tag="response.reasoning_summary_text.done"):
    """The whole summary."""

    summary_index: int = 0
    text: str


class ArgumentsDelta(_Delta, kw_only=True, tag="response.function_call_arguments.delta"):
    """A piece of a function's arguments."""


class ArgumentsDone(_ItemEvent, kw_only=True, tag="response.function_call_arguments.done"):
    """All arguments of a call."""

    name: str
    arguments: str


class InputDelta(_Delta, kw_only=True, tag="response.custom_tool_call_input.delta"):
    """A piece of a custom tool's input."""


class InputDone(_ItemEvent, kw_only=True, tag="response.custom_tool_call_input.done"):
    """The whole input of a call."""

    input: str


def event_name(event: Event) -> str:
    """The event's `type`."""
    return str(event.__struct_config__.tag)
