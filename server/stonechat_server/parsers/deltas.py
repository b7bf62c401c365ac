"""The interface between a choice's text and its message: content, reasoning or tool calls."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Text for the user."""

    text: str
    may_be_call: bool = field(default=False, compare=False)
    """Whether a call may begin so. The text is content only if no limit cut the answer there."""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text of the model's reasoning."""

    text: str
    only_if_cut: bool = field(default=False, compare=False)
    """Whether the text counts only if a limit cut the answer. It is calls otherwise."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A fragment of call `index`; only its first fragment has `id` and `name`."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    type: Literal["function", "custom"] = "function"
    unless_cut: bool = field(default=False, compare=False)
    """Whether the call counts only if no limit cut the answer. It is reasoning otherwise."""


@dataclass(frozen=True, slots=True)
class EndDelta:
    """The answer ends here, even if the model writes on. No delta follows."""


MessageDelta = ContentDelta | ReasoningDelta | ToolCallDelta
ParsedDelta = MessageDelta | EndDelta


def join(last: ParsedDelta, new: ParsedDelta) -> MessageDelta | None:
    """Return both as one delta if `new` continues the text or the call of `last`, else None."""
    match last, new:
        case ToolCallDelta(), ToolCallDelta() if last.index == new.index:
            return replace(last, arguments=last.arguments + new.arguments)
        case ReasoningDelta(), ReasoningDelta():
            return replace(last, text=last.text + new.text)
        case ContentDelta(), ContentDelta() if last.may_be_call == new.may_be_call:
            return replace(last, text=last.text + new.text)
    return None


class DeltaParser(Protocol):
    """Parses the text of one choice piece by piece. It may hold text back until `finished`."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token counts as reasoning."""

    @property
    def is_call_cut(self) -> bool:
        """Whether the latest call's arguments, or its input, are incomplete."""

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        """Return the deltas of `text`; with `finished`, also those of the text held back."""


ParserFactory = Callable[[], DeltaParser]


class ContentParser:
    """A `DeltaParser` for which all text is content."""

    in_reasoning = False
    is_call_cut = False

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        return [ContentDelta(text)] if text else []


class WrappingParser:
    """The part that `DeltaParser`s around another one share."""

    def __init__(self, inner: DeltaParser) -> None:
        self.inner = inner

    @property
    def in_reasoning(self) -> bool:
        return self.inner.in_reasoning

    @property
    def is_call_cut(self) -> bool:
        return self.inner.is_call_cut
