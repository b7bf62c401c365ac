"""Separates reasoning from an answer's text, and finds the markers that a model uses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from stonechat_server.parsers.deltas import DeltaParser, ParsedDelta, ReasoningDelta
from stonechat_server.tool_formats.layout import hold_back


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The texts around a model's reasoning."""

    start: str
    end: str


KNOWN_MARKERS = (
    ReasoningMarkers("<think>", "</think>"),
    ReasoningMarkers("[THINK]", "[/THINK]"),
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarkers("<seed:think>", "</seed:think>"),
    ReasoningMarkers("<reasoning>", "</reasoning>"),
    ReasoningMarkers("<|channel>thought", "<channel|>"),
)


def find_markers(template: str, is_token: Callable[[str], bool]) -> ReasoningMarkers | None:
    """The known markers whose end the template contains, or both of which are tokens; else None."""
    for markers in KNOWN_MARKERS:
        if markers.end in template or (is_token(markers.start) and is_token(markers.end)):
            return markers
    return None


class _State(Enum):
    START = "start"
    REASONING = "reasoning"
    END = "end"
    """After the reasoning, before any text of the answer."""
    ANSWER = "answer"


@dataclass(slots=True)
class ReasoningParser:
    """A `DeltaParser`. `inner` parses the text after the reasoning.

    `starts_open` means that the prompt already has the start marker. Whitespace next to the markers
    is removed.
    """

    markers: ReasoningMarkers
    starts_open: bool
    inner: DeltaParser
    _state: _State = field(default=_State.START, init=False)
    _held: str = field(default="", init=False)
    _has_begun: bool = field(default=False, init=False)
    """Whether any reasoning has been emitted."""

    @property
    def in_reasoning(self) -> bool:
        if self._state is _State.START:
            return self.starts_open
        return self._state is _State.REASONING

    @property
    def is_call_cut(self) -> bool:
        return self.inner.is_call_cut

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        deltas: list[ParsedDelta] = []
        if self._state is _State.START:
            self._read_start(finished)
        if self._state is _State.REASONING:
            self._read_reasoning(finished, deltas)
        if self._state is _State.END:
            self._held = self._held.lstrip()
            if self._held:
                self._state = _State.ANSWER
        if self._state is _State.ANSWER or finished:
            text, self._held = self._held, ""
            deltas += self.inner.feed(text, finished)
        return deltas

    def _read_start(self, finished: bool) -> None:
        text = self._held.lstrip()
        start = self.markers.start
        if text.startswith(start):
            self._held, self._state = text[len(start) :], _State.REASONING
        elif finished or not start.startswith(text):
            self._state = _State.REASONING if self.starts_open else _State.ANSWER

    def _read_reasoning(self, finished: bool, deltas: list[ParsedDelta]) -> None:
        reasoning, end_marker, after = self._held.partition(self.markers.end)
        if end_marker:
            self._held, self._state = after, _State.END
        elif finished:
            self._held = ""
        else:
            num_held = hold_back(reasoning, (self.markers.end,))
            reasoning = reasoning[: len(reasoning) - num_held].rstrip()
            self._held = self._held[len(reasoning) :]
        self._emit(reasoning.rstrip(), deltas)

    def _emit(self, text: str, deltas: list[ParsedDelta]) -> None:
        if not self._has_begun:
            text = text.lstrip()
        if text:
            self._has_begun = True
            deltas.append(ReasoningDelta(text))
