"""Reads calls that are plain JSON, without the marks of the tool format."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from stonechat_server.parsers.json_text import load_json, read_json_text
from stonechat_server.parsers.layouts.layout_reader import Schemas, SectionReader
from stonechat_server.parsers.scanners import JsonScanner, LiteralMatcher
from stonechat_server.parsers.schema_fit import fits
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, CallStart

_FENCE = "```"
_MAX_FENCE_WORD = 12
_OPENING_TAGS = (
    *("<tools>", "<tool>", "<tool_call>", "<tool_calls>", "<tool_code>"),
    *("<function_call>", "<function>", "<json>"),
)
"""Tags that models put around such calls, beside the marks of their own format."""
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "action_input")
_NAME_KEYS = ("name", "function", "tool", "tool_name", "action")
_OBJECT_KEYS = ("function", "function_call")
"""Keys whose value may be the object with the name and the arguments."""
_LIST_KEY = "tool_calls"
"""The key of an object that has nothing but the list of calls."""
_TEXT_KEYS = (*_NAME_KEYS, "type", "id")


@dataclass(frozen=True, slots=True)
class BareCall:
    """A call; `arguments` is JSON text."""

    name: str
    arguments: str


class BareCallReader:
    """Reads calls character by character, until a character that can be part of no call."""

    def __init__(
        self,
        functions: Collection[str],
        schemas: Schemas,
        closing_mark: str = "",
        *,
        needs_fence: bool = False,
        trigger: str = "",
        has_name_as_key: bool = False,
    ) -> None:
        """`trigger` opens the calls of the format itself, which are not read here.

        With `has_name_as_key` a call may also be `{NAME: ARGUMENTS}`.
        """
        self.held = ""
        """The text since the beginning, or since the last call."""
        self.is_over = False
        self.is_named = False
        """Whether the held text has the key of a name."""
        self.is_closed = False
        """Whether a fence or a section has been closed."""
        self._functions = functions
        self._schemas = schemas
        self._needs_fence = needs_fence
        self._names_as_keys = tuple(functions) if has_name_as_key else ()
        self._tags = [tag for tag in _OPENING_TAGS if tag != trigger]
        self._closings = [closing_mark] if closing_mark else []
        self._closing: LiteralMatcher | None = None
        self._is_list = False
        self._listed: list[BareCall] = []
        """The calls of a list, which count only if all its items are calls."""
        self._calls: list[BareCall] = []
        """The calls that the current character completes."""
        self._state: Callable[[str], None] = self._before_fence

    @property
    def is_closing(self) -> bool:
        """Whether the held text is the beginning of what closes a fence or a section."""
        return self._closing is not None

    def push(self, char: str) -> list[BareCall]:
        """Read a character. Return the calls that it completes. May set `is_over`."""
        self.held += char
        self._state(char)
        calls, self._calls = self._calls, []
        if calls:
            self.held, self.is_named = "", False
        return calls

    def _fail(self) -> None:
        self.is_over = True

    def _before_fence(self, char: str) -> None:
        if char == "`":
            self._word, self._state = "", self._in_fence
            self._in_fence(char)
        elif char == "<":
            self._word, self._state = "", self._in_tag
            self._in_tag(char)
        elif not self._needs_fence:
            self._before_list(char)
        elif not char.isspace():
            self._fail()

    def _in_fence(self, char: str) -> None:
        """Read a fence and the word behind it, such as `json`."""
        if self._word.startswith(_FENCE) and (char.isspace() or char in "[{"):
            self._closings.append(_FENCE)
            self._state = self._before_list
            self._before_list(char)
            return
        self._word += char
        word = self._word[len(_FENCE) :]
        is_word = not word or (word.isidentifier() and len(word) <= _MAX_FENCE_WORD)
        if not _FENCE.startswith(self._word[: len(_FENCE)]) or not is_word:
            self._fail()

    def _in_tag(self, char: str) -> None:
        self._word += char
        if self._word in self._tags:
            self._closings.append(self._word.replace("<", "</"))
            self._state = self._before_list
        elif not any(tag.startswith(self._word) for tag in self._tags):
            self._fail()

    def _before_list(self, char: str) -> None:
        if char == "[":
            self._is_list, self._state = True, self._before_object
        else:
            self._before_object(char)

    def _before_object(self, char: str) -> None:
        if char == "{":
            self._begin_object()
        elif not char.isspace():
            self._fail()

    def _begin_object(self) -> None:
        self._name = self._arguments = ""
        self._keys: set[str] = set()
        self._outer_keys: set[str] | None = None
        """The keys of the object around this one."""
        self._scanner = JsonScanner()
        self._state = self._before_key

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._word, self._state = "", self._in_key
        elif not char.isspace():
            self._fail()

    def _key_options(self) -> list[str]:
        options = [key for key in (*_TEXT_KEYS, *_ARGUMENT_KEYS) if key not in self._keys]
        for same in (_ARGUMENT_KEYS, _NAME_KEYS):
            if not self._keys.isdisjoint(same):
                options = [key for key in options if key not in same]
        if not self._keys and self._outer_keys is None:
            options += [*_OBJECT_KEYS, *self._names_as_keys]
            options += [] if self._is_list else [_LIST_KEY]
        return options

    def _in_key(self, char: str) -> None:
        options = self._key_options()
        if char == '"' and self._word in options:
            self._keys.add(self._word)
            self.is_named |= self._word in _NAME_KEYS
            self._state = self._before_colon
            return
        self._word += char
        if not any(key.startswith(self._word) for key in options):
            self._fail()

    def _before_colon(self, char: str) -> None:
        if char == ":":
            self._state = self._before_value
        elif not char.isspace():
            self._fail()

    def _before_value(self, char: str) -> None:
        key = self._word
        if key in self._names_as_keys and char == "{":
            self._name = key
            self._keys.update((_NAME_KEYS[0], _ARGUMENT_KEYS[0], *_TEXT_KEYS))
            self._state = self._in_arguments
            self._in_arguments(char)
        elif key in _ARGUMENT_KEYS and char in '{"':
            self._state = self._in_arguments if char == "{" else self._in_argument_text
            self._state(char)
        elif key in _OBJECT_KEYS and char == "{" and self._outer_keys is None:
            self._outer_keys, self._keys = self._keys, set()
            self._state = self._before_key
        elif key == _LIST_KEY and char == "[":
            self._closings.append("}")
            self._is_list, self._state = True, self._before_object
        elif key in _TEXT_KEYS and char == '"':
            self._key, self._word, self._state = key, "", self._in_text
        elif not char.isspace():
            self._fail()

    def _in_text(self, char: str) -> None:
        is_name = self._key in _NAME_KEYS
        options = self._functions if is_name else ("function",) if self._key == "type" else None
        if char == '"' and (options is None or self._word in options):
            self._name = self._word if is_name else self._name
            self._state = self._after_value
            return
        self._word += char
        is_possible = char not in '"\\\n'
        if options is not None:
            is_possible = any(option.startswith(self._word) for option in options)
        if not is_possible:
            self._fail()

    def _in_arguments(self, char: str) -> None:
        self._arguments += char
        if self._scanner.push(char):
            self._state = self._after_value
            if self._name and not self._fits():
                self._fail()

    def _in_argument_text(self, char: str) -> None:
        """Read arguments that are a JSON string of their object."""
        self._arguments += char
        self._scanner.push(char)
        if self._scanner.is_outside:
            self._arguments = read_json_text(self._arguments) or ""
            self._state = self._after_value
            if not self._arguments:
                self._fail()

    def _fits(self) -> bool:
        schema = self._schemas.get(self._name, {})
        try:
            return fits(load_json(self._arguments), schema, schema)
        except ValueError:
            return False

    def _after_value(self, char: str) -> None:
        if char == ",":
            self._state = self._before_key
        elif char == "}":
            self._end_object()
        elif not char.isspace():
            self._fail()

    def _end_object(self) -> None:
        if not self._name or not self._arguments or not self._fits():
            self._fail()
            return
        if self._outer_keys is not None:
            self._keys = self._outer_keys | {_NAME_KEYS[0], _ARGUMENT_KEYS[0]}
            self._outer_keys, self._state = None, self._after_value
            return
        call = BareCall(self._name, self._arguments)
        if self._is_list:
            self._listed.append(call)
        else:
            self._calls.append(call)
        self._state = self._after_object

    def _after_object(self, char: str) -> None:
        if char.isspace():
            return
        if self._is_list:
            if char == "]":
                self._calls, self._is_list, self._state = self._listed, False, self._after_list
            elif char == ",":
                self._state = self._before_object
            else:
                self._fail()
        elif char == "{":
            self._begin_object()
        else:
            self._after_list(char)

    def _after_list(self, char: str) -> None:
        """Read what closes a fence or a section, and drop it."""
        if char.isspace() and self._closing is None:
            return
        self._closing = self._closing or LiteralMatcher(self._closings)
        self._state = self._after_list
        if not self._closing.push(char):
            self._fail()
        elif self._closing.matched is not None:
            self.held, self._closing, self.is_closed = "", None, True


class UnopenedCallReader(SectionReader):
    """Reads one call as plain JSON, after which the section is closed.

    The mark that opens the section is missing. Without the closing one the JSON is text.
    """

    def __init__(self, functions: Collection[str], schemas: Schemas, closing_mark: str) -> None:
        super().__init__(functions)
        self._reader = BareCallReader(functions, schemas, closing_mark)
        self._call: BareCall | None = None

    def push(self, char: str) -> list[CallEvent]:
        self._raw += char
        has_other_call = self._call is not None and char == "{"
        for call in self._reader.push(char):
            self._call = call
        if has_other_call or self._reader.is_over:
            self.rest = self._raw
        elif self._reader.is_closed and self._call is not None:
            self.rest = ""
            return [CallStart(self._call.name), CallArguments(self._call.arguments)]
        return []
