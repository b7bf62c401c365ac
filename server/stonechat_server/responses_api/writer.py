"""Writes the events of `/v1/responses`: the answer's pieces become items, one after the other."""

import time
from collections.abc import Iterable, Sequence
from itertools import count

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from stonechat_models import LogprobEntry, RequestOutput
from stonechat_server.errors import APIError
from stonechat_server.parsers.deltas import (
    ContentDelta,
    MessageDelta,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.responses_api import answer
from stonechat_server.responses_api import events as e
from stonechat_server.responses_api.item_writers import (
    CallWriter,
    CustomCallWriter,
    ItemHead,
    ItemWriter,
    MessageWriter,
    ReasoningWriter,
    SummaryWriter,
)
from stonechat_server.responses_api.marks import item_id
from stonechat_server.responses_api.reading import ResponsesCall
from stonechat_server.responses_api.request import ENCRYPTED_REASONING, ResponsesRequest
from stonechat_server.streaming.answer_reader import AnswerReader, Piece, TokenUsage
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, encode_named


class ResponseWriter(AnswerWriter):
    """Writes one answer. `response` is what the first event says of it."""

    done = b""

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        response: answer.Response,
        call: ResponsesCall,
    ) -> None:
        super().__init__(head, reader)
        wire: ResponsesRequest = call.wire
        options = wire.stream_options
        self._is_obfuscated = bool(options and options.include_obfuscation)
        self.joins = not self._is_obfuscated
        self._response = response
        self._call = call
        self._reasoning_type = SummaryWriter if wire.wants_summary else ReasoningWriter
        self._encrypts_reasoning = ENCRYPTED_REASONING in wire.includes
        self._items: list[answer.Item] = []
        self._open: ItemWriter | None = None
        self._numbers = count()
        self._num_events = self._num_items = 0
        self._is_cut = False

    def add(self, output: RequestOutput) -> list[e.Event]:
        events = super().add(output)
        self._num_events += len(events)
        self._num_items = len(self._items)
        return events

    def begin(self) -> list[e.Event]:
        created = e.Created(sequence_number=next(self._numbers), response=self._response)
        in_progress = e.InProgress(sequence_number=next(self._numbers), response=self._response)
        return [created, in_progress]

    def write(self, piece: Piece) -> list[e.Event]:
        if piece.delta is not None:
            return self._write_delta(piece.delta, piece.logprobs)
        self._is_cut = piece.finish_reason == "length"
        events: list[e.Event] = []
        if piece.logprobs and isinstance(self._open, MessageWriter):
            events += self._open.write("", piece.logprobs)
        if piece.finish_reason == "stop" and not self._has_answer():
            events += self._write_delta(ContentDelta(""), None)
        has_cut_call = isinstance(self._open, CallWriter) and piece.finish_reason != "tool_calls"
        return events + self._close("incomplete" if self._is_cut or has_cut_call else "completed")

    def end(self) -> list[e.Event]:
        usage = _usage(self.reader.usage())
        response = replace(self._response, output=self._items, usage=usage)
        last: type[e.Completed | e.Incomplete] = e.Completed
        if self._is_cut:
            last, response.status = e.Incomplete, "incomplete"
            response.incomplete_details = answer.IncompleteDetails()
        else:
            response.status, response.completed_at = "completed", int(time.time())
        if self._call.keep is not None:
            response.store = self._call.keep(response.id, _stored(response))
        return [last(sequence_number=next(self._numbers), response=response)]

    def encode(self, events: Iterable[e.Event]) -> bytes:
        return b"".join([encode_named(e.event_name(event), event) for event in events])

    def encode_error(self, error: APIError, request_id: str) -> bytes:
        """Encode the event that ends a stream which has failed. It has the items so far.

        The events of an output that failed are lost, so their numbers and items do not count.
        """
        self._numbers = count(self._num_events)
        events = self.begin() if self._num_events == 0 else []
        response = replace(
            self._response,
            status="failed",
            store=False,
            error=answer.ResponseError(code=_error_code(error), message=error.message),
            output=self._items[: self._num_items],
        )
        failed = e.Failed(sequence_number=next(self._numbers), response=response)
        return self.encode([*events, failed])

    def _write_delta(
        self, delta: MessageDelta, logprobs: Sequence[LogprobEntry] | None
    ) -> list[e.Event]:
        events: list[e.Event] = []
        if self._open is None or not self._open.takes(delta):
            events += self._close("completed")
            self._open = self._new_item(delta)
            events += self._open.begin()
        text = delta.arguments if isinstance(delta, ToolCallDelta) else delta.text
        return events + self._open.write(text, logprobs)

    def _close(self, status: answer.ItemStatus) -> list[e.Event]:
        """End the item that is open, if there is one."""
        if self._open is None:
            return []
        item, events = self._open.end(status)
        self._items.append(item)
        self._open = None
        return events

    def _new_item(self, delta: MessageDelta) -> ItemWriter:
        match delta:
            case ContentDelta():
                return MessageWriter(self._item_head("msg"))
            case ReasoningDelta():
                return self._reasoning_type(self._item_head("rs"), self._encrypts_reasoning)
        name = self._call.tools.full_name(delta.name or "")
        if delta.type == "custom":
            return CustomCallWriter(self._item_head("ctc"), delta, name)
        return CallWriter(self._item_head("fc"), delta, name)

    def _item_head(self, prefix: str) -> ItemHead:
        number = len(self._items)
        return ItemHead(
            id=item_id(prefix, self.head.id, number),
            output_index=number,
            numbers=self._numbers,
            obfuscation=self._is_obfuscated,
        )

    def _has_answer(self) -> bool:
        """Whether there is an item beside reasoning."""
        is_open = self._open is not None and not isinstance(self._open, ReasoningWriter)
        return is_open or any(not isinstance(item, answer.Reasoning) for item in self._items)


def _stored(response: answer.Response) -> bytes:
    """The JSON by which an answer is stored: without its log-probabilities, which may be long."""
    items = [
        replace(item, content=[replace(part, logprobs=[]) for part in item.content])
        if isinstance(item, answer.Message)
        else item
        for item in response.output
    ]
    return msgspec.json.encode(replace(response, output=items))


class ResponseCollector:
    """Takes the plain answer from the last event."""

    def __init__(self) -> None:
        self._response: answer.Response | None = None

    def add(self, event: e.Event) -> None:
        """Take the next event."""
        if isinstance(event, e.Completed | e.Incomplete):
            self._response = event.response

    def answer(self) -> answer.Response:
        """The whole answer."""
        assert self._response is not None, "the stream ended without its last event"
        return self._response


def _usage(usage: TokenUsage) -> answer.Usage:
    return answer.Usage(
        input_tokens=usage.num_prompt,
        input_tokens_details=answer.InputTokensDetails(
            cached_tokens=usage.num_cached,
            cache_write_tokens=usage.num_cache_written,
            audio_tokens=usage.num_audio or UNSET,
            image_tokens=usage.num_image or UNSET,
        ),
        output_tokens=usage.num_completion,
        output_tokens_details=answer.OutputTokensDetails(reasoning_tokens=usage.num_reasoning),
        total_tokens=usage.num_prompt + usage.num_completion,
    )


def _error_code(error: APIError) -> answer.ErrorCode:
    """The code, among those that the API has for a failed answer."""
    return "invalid_prompt" if error.status == 400 else "server_error"
