"""Makes the lines of a stream of the pieces of an answer, and the plain answer of the lines."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET

from stonechat_models import LogprobEntry
from stonechat_server.errors import APIError
from stonechat_server.messages_api.collect import input_json
from stonechat_server.ollama_api.answer import (
    CallBody,
    Line,
    OllamaChatLine,
    OllamaGenerateLine,
    Said,
    TextLine,
    ToolCall,
)
from stonechat_server.ollama_api.errors import OllamaError
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta, join
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead
from stonechat_server.streaming.chunk_parts import logprob_body

LineType = type[OllamaChatLine] | type[OllamaGenerateLine]

_encode = msgspec.json.Encoder().encode


class OllamaWriter(AnswerWriter):
    """Writes a line for each piece. A call is one line, once it is complete.

    `model` is the name that the client gave, and `started` when its request was read, in
    `time.monotonic()` seconds.
    """

    done = b""

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        line_type: LineType,
        model: str,
        started: float,
    ) -> None:
        super().__init__(head, reader)
        self._line_type = line_type
        self._model = model
        self._started = started
        self._prepared = time.monotonic()
        self._call: ToolCallDelta | None = None
        self._logprobs: list[LogprobEntry] = []
        """Those of the call."""

    def write(self, piece: Piece) -> list[TextLine]:
        delta = piece.delta
        if isinstance(delta, ToolCallDelta):
            return self._add_call(delta, piece)
        lines = self._end_call()
        match delta:
            case ContentDelta(text=text):
                lines.append(self._line(Said(content=text), piece.logprobs))
            case ReasoningDelta(text=text):
                lines.append(self._line(Said(thinking=text), piece.logprobs))
            case None:
                lines.append(self._last(piece))
        return lines

    def encode(self, events: Iterable[TextLine]) -> bytes:
        return b"".join([_encode(event) + b"\n" for event in events])

    def encode_error(self, error: APIError, request_id: str) -> bytes:
        return _encode(OllamaError(error.message)) + b"\n"

    def _add_call(self, delta: ToolCallDelta, piece: Piece) -> list[TextLine]:
        joined = None if self._call is None else join(self._call, delta)
        lines = self._end_call() if joined is None else []
        assert not isinstance(joined, ContentDelta | ReasoningDelta)
        self._call = joined or delta
        self._logprobs += piece.logprobs or ()
        return lines

    def _end_call(self) -> list[TextLine]:
        call = self._call
        if call is None:
            return []
        arguments = input_json(call.arguments)
        function = CallBody(index=call.index, name=call.name or "", arguments=arguments)
        said = Said(tool_calls=[ToolCall(id=call.id or "", function=function)])
        line = self._line(said, self._logprobs)
        self._call, self._logprobs = None, []
        return [line]

    def _line(self, said: Said, logprobs: list[LogprobEntry] | None) -> TextLine:
        return self._line_type.of(
            said,
            model=self._model,
            created_at=datetime.now(UTC),
            logprobs=[logprob_body(entry) for entry in logprobs] if logprobs else UNSET,
        )

    def _last(self, piece: Piece) -> TextLine:
        line = self._line(Said(), piece.logprobs)
        usage, timings = self.reader.usage(), next(iter(self.reader.outputs.values())).timings
        now = time.monotonic()
        begun = self._prepared if timings.scheduled is None else timings.scheduled
        ended = now if timings.finished is None else timings.finished
        first = ended if timings.first_token is None else timings.first_token
        line.done, line.done_reason = True, "length" if piece.finish_reason == "length" else "stop"
        line.total_duration = nanoseconds(now - self._started)
        line.load_duration = nanoseconds(self._prepared - self._started)
        line.prompt_eval_count = usage.num_prompt
        line.prompt_eval_duration = nanoseconds(first - begun)
        line.eval_count = usage.num_completion
        line.eval_duration = nanoseconds(ended - first)
        return line


class OllamaCollector:
    """Makes the plain answer of the lines of its stream: the last one, with the whole text."""

    def __init__(self) -> None:
        self._lines: list[TextLine] = []

    def add(self, event: TextLine) -> None:
        self._lines.append(event)

    def answer(self) -> TextLine:
        last, said = self._lines[-1], [line.said for line in self._lines]
        thoughts = [part.thinking for part in said if part.thinking is not UNSET]
        calls = [call for part in said for call in part.tool_calls or ()]
        logprobs = [entry for line in self._lines for entry in line.logprobs or ()]
        whole = Said(content="".join([part.content for part in said]))
        whole.thinking = "".join(thoughts) if thoughts else UNSET
        whole.tool_calls = calls or UNSET
        values = {name: getattr(last, name) for name in Line.__struct_fields__}
        return type(last).of(whole, **{**values, "logprobs": logprobs or UNSET})


def nanoseconds(seconds: float) -> int:
    """A duration as clients receive it."""
    return max(0, round(seconds * 1e9))
