"""Separates reasoning from an answer's text, and finds the markers that a model uses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from stonechat_server.parsers.deltas import DeltaParser, ParsedDelta, ReasoningDelta
from stonechat_server.tool_formats.layout import hold_back


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The texts around a model's reasoning.

    `shown_by` is the text of a template that shows these markers; if it is empty, `end` is. With
    `strays`, reasoning may also follow the answer's text, and these texts may stand anywhere.
    """

    start: str
    end: str
    shown_by: str = ""
    strays: tuple[str, ...] = ()


_GAP = "\n\n"
KNOWN_MARKERS = (
    ReasoningMarkers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ReasoningMarkers("<think>", "</think>"),
    ReasoningMarkers("[THINK]", "[/THINK]"),
    ReasoningMarkers("<|START_THINKING|>", "<|END_THINKING|>"),
    ReasoningMarkers("<seed:think>", "</seed:think>"),
    ReasoningMarkers("<reasoning>", "</reasoning>"),
    ReasoningMarkers("<mm:think>", "</mm:think>"),
    ReasoningMarkers("<think:opensource>", "</think:opensource>", shown_by="</think{}>"),
    ReasoningMarkers("<|inner_prefix|>", "<|inner_suffix|>"),
    ReasoningMarkers("<|open|>think<|sep|>", "<|close|>think<|sep|>", shown_by="open_tag('think')"),
    ReasoningMarkers("<|think|>", "<|end|>", shown_by="<|tool_call:name|>"),
    ReasoningMarkers("<|channel>thought", "<channel|>", strays=("<channel|>", "<|channel>")),
)


def find_markers(template: str, is_token: Callable[[str], bool]) -> ReasoningMarkers | None:
    """The known markers that the template shows, else those that are both tokens, else None."""
    shown = [m for m in KNOWN_MARKERS if (m.shown_by or m.end) in template]
    tokens = (m for m in KNOWN_MARKERS if is_token(m.start) and is_token(m.end))
    return shown[0] if shown else next(tokens, None)


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
    openings: tuple[str, ...] = ()
    """Texts that begin the answer: if one comes first, there is no reasoning."""
    triggers: tuple[str, ...] = ()
    """Texts that open a call. If the reasoning does not end, such a text ends it."""
    _state: _State = field(default=_State.START, init=False)
    _held: str = field(default="", init=False)
    _has_begun: bool = field(default=False, init=False)
    """Whether any reasoning has been emitted."""
    _gap: str = field(default="", init=False)
    """Separates the next reasoning from what was emitted."""

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
        while self._step(finished, deltas):
            pass
        if finished:
            deltas += self.inner.feed(self._held, True)
            self._held = ""
        return deltas

    def _step(self, finished: bool, deltas: list[ParsedDelta]) -> bool:
        """Consume some of the held text. False if more text must arrive first."""
        match self._state:
            case _State.START:
                self._read_start(finished)
                return self._state is not _State.START
            case _State.REASONING:
                self._read_reasoning(finished, deltas)
                return self._state is not _State.REASONING
            case _State.END:
                self._held = self._held.lstrip()
                self._state = _State.ANSWER if self._held else _State.END
                return bool(self._held)
            case _State.ANSWER:
                return self._read_answer(finished, deltas)

    def _read_answer(self, finished: bool, deltas: list[ParsedDelta]) -> bool:
        """Pass text on, without stray markers. True if reasoning begins again."""
        markers = self.markers
        marks = (markers.start, *markers.strays) if markers.strays else ()
        found = min(
            ((self._held.find(mark), -len(mark), mark) for mark in marks if mark in self._held),
            default=None,
        )
        if found is None:
            num_held = 0 if finished else hold_back(self._held, marks)
            text = self._held[: len(self._held) - num_held]
            self._held = self._held[len(text) :]
            deltas += self.inner.feed(text, False)
            return False
        position, _, mark = found
        text, self._held = self._held[:position], self._held[position:]
        deltas += self.inner.feed(text, False)
        may_grow = mark != markers.start and markers.start.startswith(self._held)
        if may_grow and not finished:
            return False
        self._held = self._held.removeprefix(mark)
        if mark == markers.start:
            self._state, self._gap = _State.REASONING, _GAP
        return True

    def _read_start(self, finished: bool) -> None:
        text = self._held.lstrip()
        start, end = self.markers.start, self.markers.end
        if text.startswith(start):
            self._held, self._state = text[len(start) :], _State.REASONING
        elif text.startswith(end):
            self._held, self._state = text[len(end) :], _State.END
        elif finished or not any(mark.startswith(text) for mark in (start, end, *self.openings)):
            is_answer = not self.starts_open
            is_answer |= text.startswith((*self.openings, *self.markers.strays))
            self._state = _State.ANSWER if is_answer else _State.REASONING

    def _read_reasoning(self, finished: bool, deltas: list[ParsedDelta]) -> None:
        reasoning, end_marker, after = self._held.partition(self.markers.end)
        if end_marker:
            self._held, self._state = after, _State.END
        else:
            # A call in unfinished reasoning is held back: its end decides what it is.
            calls = [reasoning.find(text) for text in self.triggers if text in reasoning]
            num_held = 0 if finished else hold_back(reasoning, (self.markers.end, *self.triggers))
            reasoning = reasoning[: min(calls, default=len(reasoning) - num_held)].rstrip()
            self._held = self._held[len(reasoning) :] if calls or not finished else ""
            self._state = _State.END if calls and finished else self._state
        self._emit(reasoning.rstrip(), deltas)

    def _emit(self, text: str, deltas: list[ParsedDelta]) -> None:
        if not self._has_begun or self._gap:
            text = text.lstrip()
        if text:
            text = (self._gap if self._has_begun else "") + text
            self._has_begun, self._gap = True, ""
            deltas.append(ReasoningDelta(text))
