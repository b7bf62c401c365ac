"""Removes the marks that some models write around the text of their answer."""

from dataclasses import dataclass, field

from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    EndDelta,
    ParsedDelta,
    WrappingParser,
)
from stonechat_server.tool_formats.layout import hold_back


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMarks:
    """The texts around an answer's text.

    Each of `openings` may begin the answer, each of `closings` may follow its text. `before_calls`
    may precede calls without a text. `shown_by` is the text of a template that shows these marks.
    """

    openings: tuple[str, ...]
    closings: tuple[str, ...]
    before_calls: str = ""
    shown_by: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All marks."""
        return tuple(dict.fromkeys(filter(None, (*self.openings, *self.closings))))


KNOWN_MARKS = (
    AnswerMarks(
        openings=("<|START_RESPONSE|>",),
        closings=("<|END_RESPONSE|>",),
        shown_by="<|START_RESPONSE|>",
    ),
    AnswerMarks(
        openings=("<|START_TEXT|>",), closings=("<|END_TEXT|>",), shown_by="<|START_TEXT|>"
    ),
    AnswerMarks(
        openings=("<|begin|>assistant<|content|>", "<|content|>", "<|begin|>assistant"),
        closings=("<|end|><|begin|>assistant", "<|end|>"),
        before_calls="<|begin|>assistant",
        shown_by="<|content|>",
    ),
    AnswerMarks(
        openings=("<|open|>response<|sep|>",),
        closings=("<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        before_calls="<|open|>response<|sep|><|close|>response<|sep|>",
        shown_by="open_tag('response')",
    ),
    AnswerMarks(openings=(), closings=("[END FINAL RESPONSE]",), shown_by="[BEGIN FINAL RESPONSE]"),
    AnswerMarks(
        openings=("<response>",), closings=("</response>",), shown_by="<response></response>"
    ),
    AnswerMarks(openings=("<response>",), closings=("</response>",), shown_by="\\n<response>\\n"),
    AnswerMarks(openings=("all\n",), closings=(), shown_by=">>>all\\n"),
    AnswerMarks(openings=("<answer>",), closings=("</answer>",), shown_by="<answer>"),
)


def find_answer_marks(template: str) -> AnswerMarks | None:
    """The marks that the template shows, or None."""
    return next((marks for marks in KNOWN_MARKS if marks.shown_by in template), None)


@dataclass(slots=True)
class AnswerMarksParser(WrappingParser):
    """A `DeltaParser`. `inner` parses the text without the marks and the whitespace within them.

    A closing mark without an opening one is removed only if it looks like a token (`<|…|>`).
    """

    marks: AnswerMarks
    inner: DeltaParser
    otherwise: str = ""
    """Precedes the text for `inner` if no opening mark does, and the text begins like a name."""
    _held: str = field(default="", init=False)
    _may_open: bool = field(default=True, init=False)
    """Whether only whitespace has come since the beginning, or since the last mark."""
    _follows_opening: bool = field(default=False, init=False)
    _is_open: bool = field(default=False, init=False)
    """Whether there has been an opening mark."""
    _has_begun: bool = field(default=False, init=False)
    """Whether the beginning has been read."""
    _has_text: bool = field(default=False, init=False)

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        text = self._take(finished=False)
        self._has_text |= bool(text.strip())
        if not finished:
            return self.inner.feed(text, False) if text else []
        last = self._take(finished=True)
        if not self._begins_mark(last.strip()):
            return self.inner.feed(text + last, True)
        deltas = self.inner.feed(text, True)
        has_ended = bool(deltas) and isinstance(deltas[-1], EndDelta)
        if not self.is_call_cut and not has_ended:
            deltas.append(ContentDelta(last, may_be_call=True))
        return deltas

    def _begins_mark(self, text: str) -> bool:
        """Whether the end of the answer, which may be a text, looks like a mark that is cut."""
        if not text or text[0].isalpha() or (len(text) == 1 and self._has_text):
            return False
        return any(mark.startswith(text) for mark in self.marks.texts)

    def _take(self, finished: bool) -> str:
        """Take the held text that can be no part of a mark, without the marks."""
        taken = ""
        while True:
            while self._may_open and self._read_opening(finished):
                pass
            if self._may_open:
                return taken
            text, self._may_open = self._read_text(finished)
            taken += text
            if not self._may_open:
                return taken
            self._follows_opening = False

    def _read_opening(self, finished: bool) -> bool:
        """Consume an opening mark. False if there is none, or none yet."""
        text = self._held.lstrip()
        marks = [mark for mark in self.marks.openings if text.startswith(mark)]
        may_grow = any(mark.startswith(text) and mark != text for mark in self.marks.openings)
        if (may_grow or not text) and not finished:
            return False
        if not marks:
            self._may_open = False
            begins_name = text[:1].isalnum() or text[:1] == "_"
            otherwise = self.otherwise if begins_name and not self._has_begun else ""
            self._held = text if self._follows_opening else otherwise + self._held
            self._has_begun = True
            return False
        self._held = text.removeprefix(max(marks, key=len)).lstrip()
        self._is_open = self._has_begun = self._follows_opening = True
        return True

    def _read_text(self, finished: bool) -> tuple[str, bool]:
        """Take the text before a closing mark, and drop the mark. False if none is complete."""
        closings = self.marks.closings if self._is_open or self._is_token_like() else ()
        found = min(
            ((self._held.find(mark), -len(mark), mark) for mark in closings if mark in self._held),
            default=None,
        )
        if found is not None:
            position, _, mark = found
            rest = self._held[position:]
            may_grow = any(other != mark and other.startswith(rest) for other in closings)
            if finished or not may_grow:
                text, self._held = self._held[:position], rest.removeprefix(mark)
                return text.rstrip(), True
        elif finished:
            text, self._held = self._held, ""
            return text, False
        else:
            position = len(self._held) - hold_back(self._held, closings)
        text = self._held[:position].rstrip()
        self._held = self._held[len(text) :]
        return text, False

    def _is_token_like(self) -> bool:
        return all(mark.startswith(("<|", "[")) for mark in self.marks.closings)
