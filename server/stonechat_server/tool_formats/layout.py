"""The interface of a tool format: how calls are written, and how they are read back.

A format defines this once, as literal pieces of text around names and arguments. Both the grammar
that the model's output must follow and the reader of that output are made from these pieces.
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
    """The id that the model wrote, if the format has ids."""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the latest call's arguments (JSON text) or input."""

    text: str


CallEvent = CallStart | CallArguments


class SectionReader(Protocol):
    """Reads the calls that follow a trigger, character by character."""

    def push(self, char: str) -> list[CallEvent]:
        """Read the next character. Must not be called once `rest` is set."""

    def finish(self) -> list[CallEvent]:
        """End the text, and return its last events. May set `rest`."""

    @property
    def is_cut(self) -> bool:
        """Whether the latest call's arguments, or its input, are incomplete."""

    @property
    def rest(self) -> str | None:
        """None while reading; at the end of the section, the characters that are not part of it.

        If the section has no call, these are all the characters pushed.
        """


def new_call_id() -> str:
    """A unique id for a call."""
    return "call_" + secrets.token_hex(12)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A tool format. A section consists of `trigger`, then calls as `layout` describes them."""

    name: str
    """Its value of `--tool-format`."""
    trigger: str
    """Opens a section within free text. If it is empty, a section can only be the whole answer."""
    first: str
    """First character of a section if `trigger` is empty."""
    layout: "Layout"
    is_parallel: bool = True
    """Whether a section may have several calls."""
    new_id: Callable[[], str] = new_call_id


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLayout:
    """A section of calls whose arguments are one JSON object each.

    It consists of `opening`, calls separated by `separator`, and `closing`. A call consists of
    `before_name`, the name, `after_name`, the arguments, `after_arguments`. Where a piece contains
    whitespace, the reader accepts any amount of it, including none.

    With `after_number`, a number and `after_number` precede the arguments. The call's id is then
    the text from the end of the token in `before_name` to the number, such as `functions.NAME:0`.
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
        """Whether a call is itself a JSON object that contains the arguments."""
        return self.after_arguments.startswith("}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonicLayout:
    """A Python list of calls with keyword arguments: `[f(a=1, b="x"), g(**{"c d": 2})]`."""

    closing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLayout:
    """A section of calls with tags around each argument.

    It is like that of a `JsonLayout`, except for the arguments. An argument consists of
    `before_key`, the key, `after_key`, the value, `after_value`. `tag_values` describes how values
    are written. With `after_json_key`, a JSON value follows that text in place of `after_key`.
    Arguments that pairs of key and value cannot express are written as one JSON object.
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
    """The whole answer consists of messages with channels (see `parsers.harmony`)."""


Layout = JsonLayout | PythonicLayout | TagLayout | HarmonyLayout


def hold_back(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        for length in range(min(len(text), len(marker) - 1), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
