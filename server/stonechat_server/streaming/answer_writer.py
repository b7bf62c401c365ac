"""The interface of what endpoints write: events made of pieces, and one plain answer of events."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_models import RequestOutput
from stonechat_server.errors import APIError
from stonechat_server.schema.responses import Usage
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.chunk_parts import obfuscation, usage_body

Event = Any
"""What one event of a stream holds: a record that msgspec encodes as JSON."""
EventBatches = AsyncGenerator[list[Event], None]
"""Yields the events of a request: one list per output of the engine."""

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionHead:
    """What all events of an answer agree in."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET


class AnswerWriter(ABC):
    """Turns the outputs of one request into the events of one endpoint."""

    joins = True
    """Whether what several outputs add to a choice may become one event."""
    done = DONE
    """What ends a stream."""

    def __init__(self, head: CompletionHead, reader: AnswerReader) -> None:
        self.head = head
        self.reader = reader
        self._has_begun = False

    def add(self, output: RequestOutput) -> list[Event]:
        """Turn an output of one step, or of several joined steps, into events.

        Raises `APIError` if the engine reports a failure.
        """
        reader = self.reader
        first = reader.take(output)
        events: list[Event] = [] if self._has_begun else self.begin()
        if self.joins and len(output.deltas) > 1:
            for piece in reader.read_joined(output.deltas, first):
                events += self.write(piece)
        else:
            for delta in output.deltas:
                for piece in reader.read(delta, first):
                    events += self.write(piece)
        if reader.num_finished == len(reader.choices):
            events += self.end()
        self._has_begun = True
        return events

    def begin(self) -> list[Event]:
        """The events before the first piece."""
        return []

    @abstractmethod
    def write(self, piece: Piece) -> list[Event]:
        """The events of one piece."""

    def end(self) -> list[Event]:
        """The events after the last piece of the last choice."""
        return []

    def encode(self, events: Iterable[Event]) -> bytes:
        """Encode events as one piece of a stream. The JSON never contains a line break."""
        return b"".join([b"data: %b\n\n" % _encode(event) for event in events])

    def encode_error(self, error: APIError, request_id: str) -> bytes:
        """Encode an error that ends a stream which has begun. No end mark follows."""
        return self.encode([error.body()])


class CompletionsWriter(AnswerWriter):
    """Writes the chunks of chat and of text completions, with what `stream_options` asks for.

    Neighbouring deltas become one chunk, unless each needs its own usage or obfuscation.
    """

    chunk_type: Any
    """The record of a chunk, which has choices."""

    def __init__(self, head: CompletionHead, reader: AnswerReader, request: SamplingFields) -> None:
        super().__init__(head, reader)
        options = request.stream_options if request.stream else None
        self._has_last_usage = bool(options and options.include_usage) or not request.stream
        self._has_each_usage = bool(options and options.continuous_usage_stats)
        self._is_obfuscated = bool(options and options.include_obfuscation)
        self._tokens_as_ids = bool(request.return_tokens_as_token_ids)
        self.joins = not (self._has_each_usage or self._is_obfuscated)

    def end(self) -> list[Any]:
        return [self._chunk([], "", has_usage=True)] if self._has_last_usage else []

    def _chunk(self, choices: list[Any], text: str, *, has_usage: bool = False) -> Any:
        """A chunk with these choices, whose text is padded. A stream with a usage has null before
        it."""
        head = self.head
        usage: Usage | UnsetType | None = None if self._has_last_usage else UNSET
        if has_usage or self._has_each_usage:
            usage = usage_body(self.reader.usage())
        return self.chunk_type(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=choices,
            system_fingerprint=head.system_fingerprint,
            service_tier=head.service_tier,
            usage=usage,
            obfuscation=obfuscation(len(text)) if self._is_obfuscated else UNSET,
        )


def encode_named(name: str, event: Event) -> bytes:
    """Encode one event of a stream whose events have names."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode(event))


class Collector(Protocol):
    """Makes the plain answer from the events of the stream, so that the two cannot disagree."""

    def add(self, event: Event) -> None:
        """Take the next event."""

    def answer(self) -> object:
        """The whole answer: a record that msgspec encodes as JSON, or a text as it is sent."""


async def collect(batches: EventBatches, collector: Collector) -> object:
    """Collect all events into the plain answer."""
    async with aclosing(batches):
        async for batch in batches:
            for event in batch:
                collector.add(event)
    return collector.answer()
