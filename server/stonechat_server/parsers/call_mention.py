"""Tells calls that end a model's reasoning from a mention of calls within it."""

from dataclasses import dataclass, field, replace

from stonechat_server.parsers.deltas import ContentDelta, DeltaParser, ParsedDelta, ToolCallDelta


@dataclass(slots=True)
class CallMention:
    """A text in the reasoning that opens a call. `parser` tells whether calls follow."""

    trigger: str
    num_fed: int
    """Characters of the held text that `parser` has, or need not have."""
    parser: DeltaParser
    deltas: list[ParsedDelta] = field(default_factory=list)
    is_text: bool = False
    """Whether something else than calls has come."""

    def feed(self, held: str, end: int, finished: bool) -> None:
        deltas = self.parser.feed(held[self.num_fed : end], finished)
        self.num_fed = end
        self.deltas += deltas
        self.is_text |= any(isinstance(d, ContentDelta) and d.text.strip() for d in deltas)

    @property
    def is_whole(self) -> bool:
        """Whether there are calls, and none is cut."""
        return bool(self.calls()) and not self.parser.is_call_cut

    def calls(self) -> list[ToolCallDelta]:
        return [replace(d, unless_cut=True) for d in self.deltas if isinstance(d, ToolCallDelta)]
