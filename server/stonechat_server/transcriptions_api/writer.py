"""Writes a transcript as the events of its stream, and folds them into the plain answer."""

from typing import Literal

from msgspec import UNSET, UnsetType

from stonechat_server.parsers.deltas import ContentDelta
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, Event
from stonechat_server.transcriptions_api.answer import (
    AudioInputDetails,
    DurationUsage,
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    TranscriptionUsage,
    VerboseTranscription,
)
from stonechat_server.transcriptions_api.families import TextReader


class TranscriptWriter(AnswerWriter):
    """Turns pieces into events. Only the content is a transcript."""

    done = b""

    def __init__(self, head: CompletionHead, reader: AnswerReader, text: TextReader) -> None:
        super().__init__(head, reader)
        self._text = text
        self._sent: list[str] = []
        self._finish_reason: Literal["length"] | UnsetType = UNSET

    def write(self, piece: Piece) -> list[Event]:
        text = self._text.add(piece.delta.text) if isinstance(piece.delta, ContentDelta) else ""
        if piece.finish_reason is not None:
            text += self._text.end()
            if piece.finish_reason == "length":
                self._finish_reason = "length"
        return self._delta(text)

    def _delta(self, text: str) -> list[Event]:
        if not self._sent:
            text = text.lstrip()
        if not text:
            return []
        self._sent.append(text)
        return [TranscriptDelta(delta=text)]

    def end(self) -> list[Event]:
        usage = self.reader.usage()
        counts = TranscriptionUsage(
            input_tokens=usage.num_prompt,
            output_tokens=usage.num_completion,
            total_tokens=usage.num_prompt + usage.num_completion,
            input_token_details=AudioInputDetails(
                text_tokens=usage.num_prompt - usage.num_audio, audio_tokens=usage.num_audio
            ),
        )
        text = "".join(self._sent)
        return [TranscriptDone(text=text, usage=counts, finish_reason=self._finish_reason)]


class TranscriptCollector:
    """Takes the plain answer from the last event."""

    def __init__(
        self,
        form: Literal["json", "text", "verbose_json"],
        task: Literal["transcribe", "translate"],
        text: TextReader,
        duration: float,
        language: str,
    ) -> None:
        """`text` knows the language if the model says it; else it is `language`."""
        self._form, self._task, self._text = form, task, text
        self._duration, self._language = duration, language
        self._end: TranscriptDone | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, TranscriptDone):
            self._end = event

    def answer(self) -> object:
        end = self._end
        assert end is not None, "the stream ended too early"
        match self._form:
            case "text":
                return end.text + "\n"
            case "json":
                return Transcription(
                    text=end.text, usage=end.usage, finish_reason=end.finish_reason
                )
        return VerboseTranscription(
            task=self._task,
            language=self._text.language or self._language,
            duration=self._duration,
            text=end.text,
            usage=DurationUsage(seconds=self._duration),
            finish_reason=end.finish_reason,
        )
