"""Makes the events of a stream of the pieces of an answer."""

from collections.abc import Iterable

import msgspec

from stonechat_server.errors import APIError
from stonechat_server.messages_api.answer import (
    BlockBody,
    BlockDelta,
    BlockDeltaEvent,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    MessageAnswer,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    OutputTokensDetails,
    SignatureDelta,
    StopBody,
    StopReason,
    TextBody,
    TextDelta,
    ThinkingBody,
    ThinkingDelta,
    ToolUseBody,
    Usage,
    in_message,
)
from stonechat_server.messages_api.errors import error_body
from stonechat_server.messages_api.marks import signature, to_call_id
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.streaming.answer_reader import AnswerReader, Piece, TokenUsage
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, encode_named

NO_INPUT = msgspec.Raw(b"{}")


class MessagesWriter(AnswerWriter):
    """Writes blocks: one is open at a time.

    `hides_thinking` leaves out the text of thinking blocks: their signature has it.
    `is_shortened` says that the context leaves less room than the client's `max_tokens`.
    """

    done = b""

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        *,
        hides_thinking: bool = False,
        is_shortened: bool = False,
    ) -> None:
        super().__init__(head, reader)
        self._hides_thinking = hides_thinking
        self._is_shortened = is_shortened
        self._index = -1
        self._open: BlockBody | None = None
        self._call_index = -1
        self._hidden: list[str] = []

    def begin(self) -> list[MessageEvent]:
        usage = _usage(self.reader.usage())
        usage.output_tokens = usage.output_tokens_details.thinking_tokens = 0
        message = MessageAnswer(
            id=self.head.id, model=self.head.model, content=[], usage=in_message(usage)
        )
        return [MessageStart(message)]

    def write(self, piece: Piece) -> list[MessageEvent]:
        match piece.delta:
            case ContentDelta(text=text):
                return self._text(text)
            case ReasoningDelta(text=text):
                return self._thinking(text)
            case ToolCallDelta():
                return self._call(piece.delta)
        return [*self._close(), self._message_delta(piece)]

    def end(self) -> list[MessageEvent]:
        return [MessageStop()]

    def encode(self, events: Iterable[MessageEvent]) -> bytes:
        return b"".join([encode_named(_name(event), event) for event in events])

    def encode_error(self, error: APIError, request_id: str) -> bytes:
        return encode_named("error", error_body(error, request_id))

    def _text(self, text: str) -> list[MessageEvent]:
        if not text:
            return []
        events = [] if isinstance(self._open, TextBody) else self._start(TextBody(""))
        return [*events, self._delta(TextDelta(text))]

    def _thinking(self, text: str) -> list[MessageEvent]:
        if not text:
            return []
        events = [] if isinstance(self._open, ThinkingBody) else self._start(ThinkingBody("", ""))
        if self._hides_thinking:
            self._hidden.append(text)
            return events
        return [*events, self._delta(ThinkingDelta(text))]

    def _call(self, call: ToolCallDelta) -> list[MessageEvent]:
        events: list[MessageEvent] = []
        if call.index != self._call_index:
            self._call_index = call.index
            id, name = to_call_id(call.id or ""), call.name or ""
            events += self._start(ToolUseBody(id, name, NO_INPUT))
        if call.arguments:
            events.append(self._delta(InputJsonDelta(call.arguments)))
        return events

    def _start(self, block: BlockBody) -> list[MessageEvent]:
        events = self._close()
        self._open, self._index = block, self._index + 1
        return [*events, BlockStart(self._index, block)]

    def _close(self) -> list[MessageEvent]:
        events: list[MessageEvent] = []
        if isinstance(self._open, ThinkingBody):
            events.append(self._delta(SignatureDelta(signature("".join(self._hidden)))))
            self._hidden.clear()
        if self._open is not None:
            events.append(BlockStop(self._index))
        self._open = None
        return events

    def _delta(self, delta: BlockDelta) -> MessageEvent:
        return BlockDeltaEvent(self._index, delta)

    def _message_delta(self, piece: Piece) -> MessageDelta:
        reason, stop_sequence = self._stop_reason(piece), None
        if reason == "stop_sequence":
            stop_sequence = str(piece.stop_reason)
        return MessageDelta(StopBody(reason, stop_sequence), _usage(self.reader.usage()))

    def _stop_reason(self, piece: Piece) -> StopReason:
        if piece.finish_reason == "tool_calls":
            return "tool_use"
        if piece.finish_reason == "length":
            return "model_context_window_exceeded" if self._is_shortened else "max_tokens"
        return "stop_sequence" if isinstance(piece.stop_reason, str) else "end_turn"


def _name(event: MessageEvent) -> str:
    return str(event.__struct_config__.tag)


def _usage(usage: TokenUsage) -> Usage:
    return Usage(
        input_tokens=max(0, usage.num_prompt - usage.num_cached - usage.num_cache_written),
        cache_creation_input_tokens=usage.num_cache_written,
        cache_read_input_tokens=usage.num_cached,
        output_tokens=usage.num_completion,
        output_tokens_details=OutputTokensDetails(usage.num_reasoning),
    )
