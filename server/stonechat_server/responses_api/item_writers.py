"""Writes the events of one item each, from its begin to its end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from stonechat_models import LogprobEntry
from stonechat_server.parsers.deltas import (
    ContentDelta,
    MessageDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.responses_api import answer
from stonechat_server.responses_api import events as e
from stonechat_server.responses_api.marks import encode_reasoning
from stonechat_server.responses_api.tool_reading import FullName
from stonechat_server.schema.responses import TokenLogprobBody
from stonechat_server.streaming.chunk_parts import logprob_body, obfuscation


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemHead:
    """What all events of an item agree in. `numbers` counts the events of the stream."""

    id: str
    output_index: int
    numbers: Iterator[int]
    obfuscation: bool = False


class ItemWriter(ABC):
    """Writes one item, with the events that its class names."""

    delta_event: type[e.Event]
    """Has a piece of text."""
    done_event: type[e.Event]
    """Repeats the whole text."""
    part_events: tuple[type[Any], type[Any]] | None = None
    """Begin and end the item's part, if it has one."""

    def __init__(self, head: ItemHead) -> None:
        self.head = head
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """The text so far: of the message, the reasoning, the arguments or the input."""
        return "".join(self._pieces)

    @abstractmethod
    def takes(self, delta: MessageDelta) -> bool:
        """Whether the delta continues this item."""

    @abstractmethod
    def item(self, status: answer.ItemStatus) -> answer.Item:
        """The item as it is now."""

    def begin(self) -> list[e.Event]:
        """The events before the first piece of text."""
        added = e.ItemAdded(
            sequence_number=next(self.head.numbers),
            output_index=self.head.output_index,
            item=self.item("in_progress"),
        )
        if self.part_events is None:
            return [added]
        return [added, self.part_events[0](**self._place(), part=self._part())]

    def write(self, text: str, logprobs: Sequence[LogprobEntry] | None) -> list[e.Event]:
        """The events of a piece of text."""
        self._pieces.append(text)
        return [self.delta_event(**self._delta_place(text))] if text else []

    def end(self, status: answer.ItemStatus) -> tuple[answer.Item, list[e.Event]]:
        """The item, and the events after its last piece of text."""
        events = [self.done_event(**self._place(), **self._whole())]
        if self.part_events is not None:
            events.append(self.part_events[1](**self._place(), part=self._part()))
        item = self.item(status)
        done = e.ItemDone(
            sequence_number=next(self.head.numbers), output_index=self.head.output_index, item=item
        )
        return item, [*events, done]

    def _part(self) -> object:
        """The item's part as it is now."""
        return None

    def _whole(self) -> dict[str, Any]:
        """The fields of `done_event`."""
        return {"text": self.text}

    def _place(self) -> dict[str, Any]:
        """The fields that say which item the next event is about."""
        return {
            "sequence_number": next(self.head.numbers),
            "item_id": self.head.id,
            "output_index": self.head.output_index,
        }

    def _delta_place(self, text: str) -> dict[str, Any]:
        hidden = obfuscation(len(text)) if self.head.obfuscation else UNSET
        return {**self._place(), "delta": text, "obfuscation": hidden}


class MessageWriter(ItemWriter):
    """Writes a message with one part of text."""

    done_event = e.TextDone
    part_events = (e.PartAdded, e.PartDone)

    def __init__(self, head: ItemHead) -> None:
        super().__init__(head)
        self._logprobs: list[TokenLogprobBody] = []

    def takes(self, delta: MessageDelta) -> bool:
        return isinstance(delta, ContentDelta)

    def item(self, status: answer.ItemStatus) -> answer.Message:
        content = [] if status == "in_progress" else [self._part()]
        return answer.Message(id=self.head.id, status=status, content=content)

    def write(self, text: str, logprobs: Sequence[LogprobEntry] | None) -> list[e.Event]:
        self._pieces.append(text)
        latest = [logprob_body(entry) for entry in logprobs or ()]
        self._logprobs += latest
        if not text and not latest:
            return []
        return [e.TextDelta(**self._delta_place(text), logprobs=latest)]

    def _part(self) -> answer.OutputText:
        return answer.OutputText(self.text, [], list(self._logprobs))

    def _whole(self) -> dict[str, Any]:
        return {"text": self.text, "logprobs": list(self._logprobs)}


class ReasoningWriter(ItemWriter):
    """Writes reasoning as the item's content."""

    delta_event: type[e.Event] = e.ReasoningDelta
    done_event: type[e.Event] = e.ReasoningDone
    part_events: tuple[type[Any], type[Any]] | None = (e.PartAdded, e.PartDone)
    parts_field = "content"
    part_type: type[answer.ReasoningText | answer.SummaryText] = answer.ReasoningText

    def __init__(self, head: ItemHead, is_encrypted: bool) -> None:
        super().__init__(head)
        self._is_encrypted = is_encrypted

    def takes(self, delta: MessageDelta) -> bool:
        return isinstance(delta, ReasoningDelta)

    def item(self, status: answer.ItemStatus) -> answer.Reasoning:
        is_done = status != "in_progress"
        fields: dict[str, Any] = {
            "summary": [],
            self.parts_field: [self._part()] if is_done else [],
        }
        if is_done and self._is_encrypted:
            fields["encrypted_content"] = encode_reasoning(self.text)
        return answer.Reasoning(id=self.head.id, status=status, **fields)

    def _part(self) -> answer.ReasoningText | answer.SummaryText:
        return self.part_type(self.text)


class SummaryWriter(ReasoningWriter):
    """Writes reasoning as the item's summary."""

    delta_event = e.SummaryDelta
    done_event = e.SummaryDone
    part_events = (e.SummaryPartAdded, e.SummaryPartDone)
    parts_field = "summary"
    part_type = answer.SummaryText


class CallWriter(ItemWriter):
    """Writes a call of a function."""

    delta_event: type[e.Event] = e.ArgumentsDelta
    done_event: type[e.Event] = e.ArgumentsDone

    def __init__(self, head: ItemHead, call: ToolCallDelta, name: FullName) -> None:
        super().__init__(head)
        self._index, self._call_id = call.index, call.id or ""
        self._namespace, self._name = name[0] or UNSET, name[1]

    def takes(self, delta: MessageDelta) -> bool:
        return isinstance(delta, ToolCallDelta) and delta.index == self._index

    def item(self, status: answer.ItemStatus) -> answer.Item:
        return answer.FunctionCall(
            id=self.head.id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            namespace=self._namespace,
            arguments=self.text,
        )

    def _whole(self) -> dict[str, Any]:
        return {"name": self._name, "arguments": self.text}


class CustomCallWriter(CallWriter):
    """Writes a call of a custom tool."""

    delta_event = e.InputDelta
    done_event = e.InputDone

    def item(self, status: answer.ItemStatus) -> answer.Item:
        return answer.CustomToolCall(
            id=self.head.id,
            call_id=self._call_id,
            name=self._name,
            namespace=self._namespace,
            input=self.text,
        )

    def _whole(self) -> dict[str, Any]:
        return {"input": self.text}
