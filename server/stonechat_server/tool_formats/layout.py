"""The interface of a tool format: how calls are written, and how they are read back.

A format defines this once, as literal pieces of text around names and arguments. Both the grammar
that the model's output must follow and the reader of that output are made from these pieces.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

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
    first: str = ""
    """First character of a section, if `trigger` is empty."""
    layout: "Layout"
    is_parallel: bool = True
    """Whether a section may have several calls."""
    prefix: str = ""
    """A special token that may precede the section, and is no part of it."""
    opens_in_prompt: bool = False
    """Whether the prompt ends with `trigger`, so that the answer begins with a call's name."""
    new_id: Callable[[], str] = new_call_id
    has_recipients: bool = False
    """Whether a section is a message to its tool, and other messages are to the user."""

    @property
    def has_messages(self) -> bool:
        """Whether the whole answer consists of messages."""
        return self.has_recipients or isinstance(self.layout, HarmonyLayout)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallId:
    """An id that is part of a call. It matches `pattern`.

    With `before`, it follows the name and `before`. Without, it precedes the name, and `after`
    stands between the two.
    """

    pattern: str
    before: str = ""
    after: str = ""
    is_optional: bool = False
    names_call: Literal["no", "id", "name and id"] = "id"
    """What the call's id is: a new one, this one, or all from the name's prefix to this one, such
    as `functions.NAME:0`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLayout:
    """A section of calls whose arguments are one JSON object each.

    It consists of `opening`, calls separated by `separator`, and `closing`. A call consists of
    `before_name`, the name, `after_name`, the arguments, `after_arguments`, and perhaps an `id`.
    Where a piece contains whitespace, any amount of it may be written, including none.
    """

    opening: str = ""
    before_name: str
    after_name: str
    after_arguments: str
    separator: str
    closing: str = ""
    id: CallId | None = None
    has_id_key: bool = False
    """Whether a key `id` may follow the arguments."""

    @property
    def is_object(self) -> bool:
        """Whether a call is itself a JSON object, with its name and arguments as values."""
        return f"{self.before_name}{self.id.after if self.id else ''}".endswith('name": "')


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonicLayout:
    """Python calls with keyword arguments: `[f(a=1, b="x"), g(**{"c d": 2})]`."""

    opening: str = "["
    separator: str = ", "
    closing: str = "]"


@dataclass(frozen=True, slots=True, kw_only=True)
class DictLayout:
    """A section of calls with bare keys: `f{a:1,b:[true,{c:null}]}`.

    It is like that of a `JsonLayout`, except for the arguments. `quote` stands before and after a
    string, which is written as it is. Values that this notation cannot express are written as JSON.
    """

    before_name: str
    quote: str
    after_arguments: str
    separator: str
    opening: str = field(default="", init=False)
    after_name: str = field(default="", init=False)
    closing: str = field(default="", init=False)
    id: CallId | None = field(default=None, init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TagLayout:
    """A section of calls with tags around each argument.

    It is like that of a `JsonLayout`, except for the arguments. An argument consists of
    `before_key`, the key, `after_key`, the value, `after_value`. `tag_values` describes how values
    are written. With `after_json_keys`, a JSON value follows one of these in place of `after_key`.
    With `has_cdata`, a text may stand between `CDATA_START` and `CDATA_END`. Arguments that pairs
    of key and value cannot express are written as one JSON object.
    """

    opening: str = ""
    before_name: str
    after_name: str
    before_key: str
    after_key: str
    after_json_keys: tuple[str, ...] = ()
    after_value: str
    after_arguments: str
    separator: str
    closing: str = ""
    id: CallId | None = None
    has_cdata: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementLayout:
    """A section of calls whose arguments are nested elements, with `mark` before every tag.

    It is like that of a `JsonLayout`, except for the arguments: `#<key>value#</key>`, with `#` for
    the mark. An object's value is elements again, a list's are elements called `item`.
    """

    opening: str
    before_name: str
    after_name: str
    mark: str
    after_arguments: str
    separator: str
    closing: str
    id: CallId | None = field(default=None, init=False)


CDATA_START, CDATA_END = "<![CDATA[", "]]>"


@dataclass(frozen=True, slots=True, kw_only=True)
class HarmonyLayout:
    """The whole answer consists of messages with channels (see `parsers.harmony`)."""


CallLayout = JsonLayout | TagLayout | DictLayout | ElementLayout
"""The layouts whose calls are a name and arguments between fixed texts."""
Layout = CallLayout | PythonicLayout | HarmonyLayout


def layout_texts(layout: object) -> Iterator[str]:
    """Yield the fixed texts of a layout."""
    for item in fields(layout):  # type: ignore[arg-type]
        value = getattr(layout, item.name)
        if isinstance(value, str):
            yield value
        elif isinstance(value, tuple):
            yield from value
        elif isinstance(value, CallId):
            yield from (value.before, value.after)


def hold_back(text: str, markers: tuple[str, ...]) -> int:
    """Length of the longest suffix of `text` that may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        if marker[:1] not in text:  # there may be a marker for each of many tools
            continue
        for length in range(min(len(text), len(marker) - 1), longest, -1):
            if text.endswith(marker[:length]):
                longest = length
                break
    return longest
