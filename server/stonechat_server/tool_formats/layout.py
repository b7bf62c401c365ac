"""The interface of a tool-call format: how calls are written, and how they are read back.

A format says it once, as literal pieces of text around names and arguments. The grammar that the
model's output must follow and the reader of that output are both made from these pieces.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

CallType = Literal["function", "custom"]


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins."""

    name: str
    type: CallType = "function"
    id: str | None = None
    """Where the format itself gives calls their ids."""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the latest call's arguments (JSON text) or input."""

    text: str


CallEvent = CallStart | CallArguments


class SectionReader(Protocol):
    """Reads the calls that follow a trigger, character by character."""

    def push(self, char: str) -> list[CallEvent]:
        """The next character. Must not be called once `rest` is set."""

    def finish(self) -> list[CallEvent]:
        """The text has ended; may set `rest`."""

    @property
    def is_cut(self) -> bool:
        """Whether a call has begun and its arguments, or its input, are not complete."""

    @property
    def rest(self) -> str | None:
        """None while reading; at the end of the section, characters that were not part of it.

        If no call was read at all, these are all characters pushed.
        """


def new_call_id() -> str:
    """A unique id."""
    return "call_" + secrets.token_hex(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A section is `trigger`, then what `reader` reads; `name` is what the flag calls it."""

    name: str
    trigger: str
    """Opens a section within free text. Empty: a section can only be a whole answer."""
    first: str
    """First character of a section where `trigger` is empty."""
    layout: "Layout"
    is_parallel: bool = True
    """Whether a section can hold several calls."""
    new_id: Callable[[], str] = new_call_id


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLayout:
    """A section of calls whose arguments are one JSON object each.

    It reads: `opening`, then calls separated by `separator`, then `closing`. A call reads
    `before_name`, the name, `after_name`, the arguments, `after_arguments`. Readers take any
    whitespace where the pieces have some, and none where they have it.

    With `after_number`, a number and that text stand before the arguments; then `before_name`
    without its first token, name and number are the call's id.
    """

    opening: str = ""
    before_name: str
    after_name: str
    after_number: str = ""
    after_arguments: str
    separator: str
    closing: str = ""

    @property
    def is_object(self) -> bool:
        """Whether a call is itself a JSON object with the arguments inside."""
        return self.after_arguments.startswith("}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonicLayout:
    """A Python list of calls with keyword arguments: `[f(a=1, b="x"), g(**{"c d": 2})]`."""

    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLayout:
    """A section of calls whose arguments stand each between tags of their own.

    It reads as with `JsonLayout`, but for the arguments: for each `before_key`, the key,
    `after_key`, the value, `after_value`. See `tag_values` for how values are written; with
    `after_json_key`, which goes before those that are JSON, they say so themselves. Arguments that
    keys cannot say stand there as one JSON object.
    """

    opening: str = ""
    before_name: str
    after_name: str
    before_key: str
    after_key: str
    after_json_key: str = ""
    after_value: str
    after_arguments: str
    separator: str
    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonyLayout:
    """The whole answer is messages with channels: see `harmony`."""


Layout = JsonLayout | PythonicLayout | TagLayout | HarmonyLayout


def hold_back(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for length in range(min(len(text), len(marker) - 1), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
