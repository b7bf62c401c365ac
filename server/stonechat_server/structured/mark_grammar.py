"""Writes the marks that a model may put into and around its answer's text."""

from dataclasses import dataclass

from stonechat_server.parsers.answer_marks import AnswerMarks
from stonechat_server.parsers.reasoning import ReasoningMarkers
from stonechat_server.structured.lark import LarkWriter, choice, sequence

MAX_MARKS = 16
"""Marks per answer. Reasoning may return, and marks may be written by mistake."""


@dataclass(frozen=True, slots=True)
class MarkGrammar:
    """The marks of one template. Marks that are no special tokens are part of free text anyway."""

    writer: LarkWriter
    marks: AnswerMarks | None = None
    markers: ReasoningMarkers | None = None

    def within_text(self) -> str:
        """An expression for one mark; empty if no mark has a special token."""
        texts = [*self.marks.texts] if self.marks else []
        if self.markers is not None:
            texts += [self.markers.start, self.markers.end, *self.markers.strays]
        special = [text for text in dict.fromkeys(texts) if self.writer.has_special(text)]
        return choice(map(self.writer.spaced, special)) if special else ""

    def opening(self) -> str:
        """A mark that must begin the text."""
        return choice(map(self.writer.literal, self.marks.openings)) if self.marks else ""

    def around(self, answer: str) -> str:
        """The whole answer, which has a form: the marks may stand around it."""
        if self.marks is None:
            return answer
        spaced = self.writer.spaced
        openings = [sequence(spaced(text), "(SPACE)?") for text in self.marks.openings]
        closings = [sequence("(SPACE)?", spaced(text)) for text in self.marks.closings]
        opening = f"({choice(openings)})?" if openings else ""
        return sequence(opening, answer, f"{choice(closings)}{{0,2}}")

    def after_calls(self) -> str:
        """What may follow calls at the end of the answer."""
        texts = self.marks.closings if self.marks and self.marks.before_calls else ()
        return f"{choice(map(self.writer.literal, texts))}{{0,2}}" if texts else ""

    def before_calls(self) -> str:
        """What may precede calls without a text."""
        text = self.marks.before_calls if self.marks else ""
        return f"({self.writer.literal(text)})?" if text else ""
