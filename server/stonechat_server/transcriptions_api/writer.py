"""Writes a transcript as the events of its stream, and folds them into the plain answer."""

from typing import Literal

from msgspec import UNSET, UnsetType

from stonechat_models import SpeechSegment
from stonechat_server.parsers.deltas import ContentDelta
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, Event
from stonechat_server.transcriptions_api.answer import (
    AudioInputDetails,
    DurationUsage,
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    TranscriptionSegment,
    TranscriptionUsage,
    TranscriptionWord,
    VerboseTranscription,
)
from stonechat_server.transcriptions_api.families import TextReader
from stonechat_server.transcriptions_api.languages import name_of
from stonechat_server.transcriptions_api.request import TranscriptionRequest
from stonechat_server.transcriptions_api.subtitles import subtitles


class TranscriptWriter(AnswerWriter):
    """Turns pieces into events. Only the content is a transcript."""

    done = b""

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        text: TextReader,
        seconds: float | None = None,
    ) -> None:
        """`seconds`: the length of the clip, if the model counts no tokens of audio."""
        super().__init__(head, reader)
        self._text = text
        self._seconds = seconds
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
        text = "".join(self._sent)
        output = self.reader.outputs[self.reader.prompt_ids[0]]
        self._text.transcript = output.transcript
        if output.transcript is not None:
            self._text.language = name_of(output.transcript.language or "en").lower()
        return [TranscriptDone(text=text, usage=self._usage(), finish_reason=self._finish_reason)]

    def _usage(self) -> TranscriptionUsage | DurationUsage:
        if self._seconds is not None:
            return DurationUsage(seconds=self._seconds)
        usage = self.reader.usage()
        return TranscriptionUsage(
            input_tokens=usage.num_prompt,
            output_tokens=usage.num_completion,
            total_tokens=usage.num_prompt + usage.num_completion,
            input_token_details=AudioInputDetails(
                text_tokens=usage.num_prompt - usage.num_audio, audio_tokens=usage.num_audio
            ),
        )


class TranscriptCollector:
    """Takes the plain answer from the last event."""

    def __init__(
        self,
        wire: TranscriptionRequest,
        task: Literal["transcribe", "translate"],
        text: TextReader,
        duration: float,
        language: str,
    ) -> None:
        """`text` knows the language if the model says it; else it is `language`."""
        self._wire, self._task, self._text = wire, task, text
        self._duration, self._language = duration, language
        self._end: TranscriptDone | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, TranscriptDone):
            self._end = event

    def answer(self) -> object:
        end = self._end
        assert end is not None, "the stream ended too early"
        transcript = self._text.transcript
        segments = () if transcript is None else transcript.segments
        match self._wire.response_format:
            case "text":
                return end.text + "\n"
            case "srt" | "vtt" as form:
                return subtitles(segments, form)
            case "json" | None:
                return Transcription(
                    text=end.text, usage=end.usage, finish_reason=end.finish_reason
                )
        said = "" if self._task == "translate" else self._text.language
        return VerboseTranscription(
            task=self._task,
            language=said or self._language,
            duration=self._duration,
            text=end.text,
            segments=UNSET
            if transcript is None or not self._wire.with_segments
            else [_segment(number, segment) for number, segment in enumerate(segments)],
            words=[
                TranscriptionWord(word=word.text, start=word.start, end=word.end)
                for segment in segments
                for word in segment.words
            ]
            if self._wire.with_words
            else UNSET,
            usage=DurationUsage(seconds=self._duration),
            finish_reason=end.finish_reason,
        )


def _segment(number: int, segment: SpeechSegment) -> TranscriptionSegment:
    return TranscriptionSegment(
        id=number,
        seek=segment.seek,
        start=segment.start,
        end=segment.end,
        text=segment.text,
        tokens=segment.token_ids,
        temperature=segment.temperature,
        avg_logprob=segment.avg_logprob,
        compression_ratio=segment.compression_ratio,
        no_speech_prob=segment.no_speech_prob,
    )
