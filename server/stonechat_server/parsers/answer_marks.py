"""Removes the marks that some models write around the text of their answer."""

from dataclasses import dataclass, field

from stonechat_server.parsers.deltas import DeltaParser, ParsedDelta
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
class AnswerMarksParser:
    """A `DeltaParser`. `inner` parses the text without the marks and the whitespace within them.

    A closing mark without an opening one is removed only if it looks like a token (`<|…|>`).
    """

    marks: AnswerMarks
    inner: DeltaParser
    otherwise: str = ""
    """Precedes the text for `inner` if no opening mark does, and the text begins like a name."""
    _held: str = field(default="", init=False)
    _is_at_start: bool = field(default=True, init=False)
    _is_open: bool = field(default=False, init=False)

    @property
    def in_reasoning(self) -> bool:
        return self.inner.in_reasoning

    @property
    def is_call_cut(self) -> bool:
        return self.inner.is_call_cut

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        while self._is_at_start and self._read_opening(finished):
            pass
        if self._is_at_start and not finished:
            return []
        text = self._take(finished)
        return self.inner.feed(text, finished) if text or finished else []

    def _read_opening(self, finished: bool) -> bool:
        """Consume an opening mark. False if there is none, or none yet."""
        text = self._held.lstrip()
        marks = [mark for mark in self.marks.openings if text.startswith(mark)]
        may_grow = any(mark.startswith(text) and mark != text for mark in self.marks.openings)
        if may_grow and not finished:
            return False
        if not marks:
            self._is_at_start = False
            begins_name = text[:1].isalnum() or text[:1] == "_"
            otherwise = self.otherwise if begins_name else ""
            self._held = text if self._is_open else otherwise + self._held
            return False
        self._held = text.removeprefix(max(marks, key=len)).lstrip()
        self._is_open = True
        return True

    def _take(self, finished: bool) -> str:
        """Take the held text that can be no part of a closing mark, without such marks."""
        closings = self.marks.closings if self._is_open or self._is_token_like() else ()
        text, self._held = self._held, ""
        for mark in sorted(closings, key=len, reverse=True):
            before, found, after = text.partition(mark)
            text = before.rstrip() + after if found else text
        if finished:
            return text
        num_held = hold_back(text, closings)
        end = len(text[: len(text) - num_held].rstrip())
        self._held = text[end:]
        return text[:end]

    def _is_token_like(self) -> bool:
        return all(mark.startswith(("<|", "[")) for mark in self.marks.closings)
