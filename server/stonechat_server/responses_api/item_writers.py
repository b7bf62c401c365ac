"""Writes the events of one item each, from its begin to its end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET, UnsetType

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
    """Writes one item."""

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
        return [added, *self._begin_part()]

    def write(self, text: str, logprobs: Sequence[LogprobEntry] | None) -> list[e.Event]:
        """The events of a piece of text."""
        self._pieces.append(text)
        return [self._delta(text)] if text else []

    def end(self, status: answer.ItemStatus) -> tuple[answer.Item, list[e.Event]]:
        """The item, and the events after its last piece of text."""
        events = self._end_text()
        item = self.item(status)
        done = e.ItemDone(
            sequence_number=next(self.head.numbers), output_index=self.head.output_index, item=item
        )
        return item, [*events, done]

    def _begin_part(self) -> list[e.Event]:
        return []

    @abstractmethod
    def _delta(self, text: str) -> e.Event:
        """The event of a piece of text."""

    @abstractmethod
    def _end_text(self) -> list[e.Event]:
        """The events that repeat the whole text."""

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

    def __init__(self, head: ItemHead) -> None:
        super().__init__(head)
        self._logprobs: list[TokenLogprobBody] = []
        self._latest: list[TokenLogprobBody] = []

    def takes(self, delta: MessageDelta) -> bool:
        return isinstance(delta, ContentDelta)

    def item(self, status: answer.ItemStatus) -> answer.Message:
        content = [] if status == "in_progress" else [self._part()]
        return answer.Message(id=self.head.id, status=status, content=content)

    def write(self, text: str, logprobs: Sequence[LogprobEntry] | None) -> list[e.Event]:
        self._pieces.append(text)
        self._latest = [logprob_body(entry) for entry in logprobs or ()]
        self._logprobs += self._latest
        return [self._delta(text)] if text or self._latest else []

    def _part(self) -> answer.OutputText:
        return answer.OutputText(self.text, [], list(self._logprobs))

    def _begin_part(self) -> list[e.Event]:
        return [e.PartAdded(**self._place(), part=answer.OutputText("", [], []))]

    def _delta(self, text: str) -> e.Event:
        return e.TextDelta(**self._delta_place(text), logprobs=self._latest)

    def _end_text(self) -> list[e.Event]:
        part = self._part()
        return [
            e.TextDone(**self._place(), text=part.text, logprobs=part.logprobs),
            e.PartDone(**self._place(), part=part),
        ]


class ReasoningWriter(ItemWriter):
    """Writes reasoning as the item's content."""

    def __init__(self, head: ItemHead, is_encrypted: bool) -> None:
        super().__init__(head)
        self._is_encrypted = is_encrypted

    def takes(self, delta: MessageDelta) -> bool:
        return isinstance(delta, ReasoningDelta)

    def item(self, status: answer.ItemStatus) -> answer.Reasoning:
        is_done = status != "in_progress"
        return answer.Reasoning(
            id=self.head.id,
            status=status,
            summary=[],
            content=[answer.ReasoningText(self.text)] if is_done else [],
            encrypted_content=self._encrypted() if is_done else UNSET,
        )

    def _encrypted(self) -> str | UnsetType:
        return encode_reasoning(self.text) if self._is_encrypted else UNSET

    def _begin_part(self) -> list[e.Event]:
        return [e.PartAdded(**self._place(), part=answer.ReasoningText(""))]

    def _delta(self, text: str) -> e.Event:
        return e.ReasoningDelta(**self._delta_place(text))

    def _end_text(self) -> list[e.Event]:
        return [
            e.ReasoningDone(**self._place(), text=self.text),
            e.PartDone(**self._place(), part=answer.ReasoningText(self.text)),
        ]


class SummaryWriter(ReasoningWriter):
    """Writes reasoning as the item's summary."""

    def item(self, status: answer.ItemStatus) -> answer.Reasoning:
        is_done = status != "in_progress"
        return answer.Reasoning(
            id=self.head.id,
            status=status,
            summary=[answer.SummaryText(self.text)] if is_done else [],
            encrypted_content=self._encrypted() if is_done else UNSET,
        )

    def _begin_part(self) -> list[e.Event]:
        return [e.SummaryPartAdded(**self._place(), part=answer.SummaryText(""))]

    def _delta(self, text: str) -> e.Event:
        return e.SummaryDelta(**self._delta_place(text))

    def _end_text(self) -> list[e.Event]:
        return [
            e.SummaryDone(**self._place(), text=self.text),
            e.SummaryPartDone(**self._place(), part=answer.SummaryText(self.text)),
        ]


class CallWriter(ItemWriter):
    """Writes a call of a function."""

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

    def _delta(self, text: str) -> e.Event:
        return e.ArgumentsDelta(**self._delta_place(text))

    def _end_text(self) -> list[e.Event]:
        return [e.ArgumentsDone(**self._place(), name=self._name, arguments=self.text)]


class CustomCallWriter(CallWriter):
    """Writes a call of a custom tool."""

    def item(self, status: answer.ItemStatus) -> answer.Item:
        return answer.CustomToolCall(
            id=self.head.id,
            call_id=self._call_id,
            name=self._name,
            namespace=self._namespace,
            input=self.text,
        )

    def _delta(self, text: str) -> e.Event:
        return e.InputDelta(**self._delta_place(text))

    def _end_text(self) -> list[e.Event]:
        return [e.InputDone(**self._place(), input=self.text)]
