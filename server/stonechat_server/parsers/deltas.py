"""The seam between a choice's text and its message: content, reasoning or calls of tools."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """Text of the model's reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A fragment of call `index`; `id` and `name` come with its first fragment only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    type: Literal["function", "custom"] = "function"


ParsedDelta = ContentDelta | ReasoningDelta | ToolCallDelta


class DeltaParser(Protocol):
    """Reads the text of one choice as it comes. It may hold text back until `finished`."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the next token counts as reasoning."""

    @property
    def is_call_cut(self) -> bool:
        """Whether the latest call's arguments, or its input, have not come to their end."""

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        """What `text` adds; with `finished`, also everything held back."""


ParserFactory = Callable[[], DeltaParser]


class ContentParser:
    """All text is content."""

    in_reasoning = False
    is_call_cut = False

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        return [ContentDelta(text)] if text else []
