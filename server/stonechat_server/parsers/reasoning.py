"""Separates reasoning from an answer's text, and finds the markers that a model uses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from stonechat_server.parsers.call_mention import CallMention
from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    ParsedDelta,
    ParserFactory,
    ReasoningDelta,
)
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
_MAX_MENTIONS = 16
"""Mentions of calls that are read again as text. It bounds the work on an answer."""
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
    """A `DeltaParser`. A parser that `new_inner` makes parses the text after the reasoning.

    `starts_open` means that the prompt already has the start marker. Whitespace next to the markers
    is removed. Calls at the end of reasoning that has no end marker are calls if they are whole, no
    text follows them, and no limit cut the answer. Any other mention of a call is reasoning.
    """

    markers: ReasoningMarkers
    starts_open: bool
    new_inner: ParserFactory
    openings: tuple[str, ...] = ()
    """Texts that begin the answer: if one comes first, there is no reasoning."""
    triggers: tuple[str, ...] = ()
    """Texts that open a call."""
    _inner: DeltaParser = field(init=False)
    _state: _State = field(default=_State.START, init=False)
    _held: str = field(default="", init=False)
    _has_begun: bool = field(default=False, init=False)
    """Whether any reasoning has been emitted."""
    _gap: str = field(default="", init=False)
    """Separates the next reasoning from what was emitted."""
    _num_searched: int = field(default=0, init=False)
    """Held characters of the reasoning before which no end marker begins."""
    _mention: CallMention | None = field(default=None, init=False)
    """What the held text begins with, apart from whitespace, while it may still be calls."""
    _num_mentions: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._inner = self.new_inner()

    @property
    def in_reasoning(self) -> bool:
        if self._state is _State.START:
            return self.starts_open
        return self._state is _State.REASONING

    @property
    def is_call_cut(self) -> bool:
        return self._inner.is_call_cut

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        deltas: list[ParsedDelta] = []
        while self._step(False, deltas):
            pass
        if finished and self._begins_start():
            deltas += [*self._inner.feed("", True), ContentDelta(self._held, may_be_call=True)]
            return deltas
        while finished and self._step(True, deltas):
            pass
        if finished and self._state is not _State.REASONING:
            deltas += self._inner.feed(self._held, True)
            self._held = ""
        return deltas

    def _step(self, finished: bool, deltas: list[ParsedDelta]) -> bool:
        """Consume some of the held text. False if more text must arrive first."""
        match self._state:
            case _State.START:
                self._read_start(finished)
                return self._state is not _State.START
            case _State.REASONING:
                return self._read_reasoning(finished, deltas)
            case _State.END:
                return self._read_end(finished)
            case _State.ANSWER:
                return self._read_answer(finished, deltas)

    def _begins_start(self) -> bool:
        """Whether the held text looks like a start marker that is cut."""
        may_start = self._state is _State.END
        may_start |= self._state is _State.START and not self.starts_open
        text = self._held.strip()
        may_start &= bool(text) and not text[0].isalpha()
        return may_start and self.markers.start.startswith(text)

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
            deltas += self._inner.feed(text, False)
            return False
        position, _, mark = found
        text, self._held = self._held[:position], self._held[position:]
        deltas += self._inner.feed(text, False)
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

    def _read_end(self, finished: bool) -> bool:
        """Skip whitespace. More reasoning may follow. False as `_step`."""
        self._held = self._held.lstrip()
        start = self.markers.start
        if self._held.startswith(start):
            self._held = self._held[len(start) :]
            self._state, self._gap = _State.REASONING, _GAP
            return True
        if not self._held or (start.startswith(self._held) and not finished):
            return False
        self._state = _State.ANSWER
        return True

    def _read_reasoning(self, finished: bool, deltas: list[ParsedDelta]) -> bool:
        end = self._held.find(self.markers.end, self._num_searched)
        if end >= 0:
            self._emit(self._held[:end].rstrip(), deltas)
            self._held = self._held[end + len(self.markers.end) :]
            self._state, self._mention, self._num_searched = _State.END, None, 0
            return True
        if self._mention is not None:
            return self._read_mention(self._mention, finished, deltas)
        triggers = self.triggers if self._num_mentions < _MAX_MENTIONS else ()
        found = min(
            ((self._held.find(text), text) for text in triggers if text in self._held), default=None
        )
        num_held = 0 if finished else hold_back(self._held, (self.markers.end, *triggers))
        self._take(found[0] if found else len(self._held) - num_held, deltas)
        if found is None:
            self._held = "" if finished else self._held
            return False
        self._mention = CallMention(found[1], self._held.index(found[1]), self.new_inner())
        self._num_mentions += 1
        return True

    def _read_mention(
        self, mention: CallMention, finished: bool, deltas: list[ParsedDelta]
    ) -> bool:
        """Have the text parsed that begins with a trigger. False as `_step`."""
        end = self.markers.end
        num_held = 0 if finished else hold_back(self._held[-len(end) :], (end,))
        mention.feed(self._held, len(self._held) - num_held, finished)
        self._num_searched = max(0, len(self._held) - len(end) + 1)
        if mention.is_text or (finished and not mention.is_whole):
            self._mention, self._num_searched = None, 0
            self._take(self._held.index(mention.trigger) + len(mention.trigger), deltas)
            return True
        if finished:
            self._emit(self._held.rstrip(), deltas, only_if_cut=True)
            deltas += mention.calls()
            self._inner, self._held = mention.parser, ""
        return False

    def _take(self, length: int, deltas: list[ParsedDelta]) -> None:
        """Emit the beginning of the held text. Whitespace at its end stays held."""
        text = self._held[:length].rstrip()
        self._held = self._held[len(text) :]
        self._emit(text, deltas)

    def _emit(self, text: str, deltas: list[ParsedDelta], only_if_cut: bool = False) -> None:
        if not self._has_begun or self._gap:
            text = text.lstrip()
        if text:
            text = (self._gap if self._has_begun else "") + text
            self._has_begun, self._gap = True, ""
            deltas.append(ReasoningDelta(text, only_if_cut))
