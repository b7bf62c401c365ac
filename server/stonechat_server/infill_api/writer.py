"""Makes the events of a stream of the pieces of an answer, and the plain answer of the events."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from stonechat_server.infill_api.answer import InfillAnswer, InfillTimings
from stonechat_server.parsers.deltas import ContentDelta
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead


class InfillWriter(AnswerWriter):
    """Writes an event for each piece. `truncated`: files were left out of the prompt."""

    done = b""

    def __init__(self, head: CompletionHead, reader: AnswerReader, *, truncated: bool) -> None:
        super().__init__(head, reader)
        self._truncated = truncated
        self._prepared = time.monotonic()

    def write(self, piece: Piece) -> list[InfillAnswer]:
        if isinstance(piece.delta, ContentDelta):
            return [InfillAnswer(content=piece.delta.text)]
        return [self._last(piece)]

    def _last(self, piece: Piece) -> InfillAnswer:
        usage, word = self.reader.usage(), piece.stop_reason
        answer = InfillAnswer(
            stop=True,
            model=self.head.model,
            tokens_predicted=usage.num_completion,
            tokens_evaluated=usage.num_prompt,
            tokens_cached=usage.num_cached,
            truncated=self._truncated,
            stop_type="eos",
            stopping_word=word if isinstance(word, str) else "",
            timings=self._timings(),
        )
        if answer.stopping_word:
            answer.stop_type = "word"
        elif piece.finish_reason == "length" or self.reader.ended_early:
            answer.stop_type = "limit"
        return answer

    def _timings(self) -> InfillTimings:
        usage, timings = self.reader.usage(), next(iter(self.reader.outputs.values())).timings
        begun = self._prepared if timings.scheduled is None else timings.scheduled
        ended = time.monotonic() if timings.finished is None else timings.finished
        first = ended if timings.first_token is None else timings.first_token
        num_read = usage.num_prompt - usage.num_cached
        prompt_ms, predicted_ms = (max(0.0, 1000 * s) for s in (first - begun, ended - first))
        return InfillTimings(
            cache_n=usage.num_cached,
            prompt_n=num_read,
            prompt_ms=prompt_ms,
            prompt_per_token_ms=prompt_ms / max(1, num_read),
            prompt_per_second=_rate(num_read, prompt_ms),
            predicted_n=usage.num_completion,
            predicted_ms=predicted_ms,
            predicted_per_token_ms=predicted_ms / max(1, usage.num_completion),
            predicted_per_second=_rate(usage.num_completion, predicted_ms),
        )


class InfillCollector:
    """Makes the plain answer of the events of its stream: the last one, with the whole text.

    It has the keys `fields` alone, if they are given: `timings/prompt_n` is one within another.
    """

    def __init__(self, fields: Sequence[str] | None) -> None:
        self._fields = fields
        self._events: list[InfillAnswer] = []

    def add(self, event: InfillAnswer) -> None:
        self._events.append(event)

    def answer(self) -> object:
        content = "".join([event.content for event in self._events])
        whole = msgspec.structs.replace(self._events[-1], content=content)
        if self._fields is None:
            return whole
        values: Any = msgspec.to_builtins(whole)
        values |= {f"timings/{name}": value for name, value in values["timings"].items()}
        return {name: values[name] for name in self._fields if name in values}


def _rate(count: int, milliseconds: float) -> float:
    return 1000 * count / milliseconds if milliseconds else 0.0
