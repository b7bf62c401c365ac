"""Reads sections of calls with JSON arguments (see `JsonLayout`)."""

import json
from collections.abc import Collection

from stonechat_server.parsers.json_text import load_json, read_json_text
from stonechat_server.parsers.layouts.layout_reader import LayoutReader, Schemas
from stonechat_server.parsers.scanners import JsonScanner
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, CallStart, JsonLayout

_NAME_KEYS = ("name", "tool_name")
_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonCallsReader(LayoutReader[JsonLayout]):
    """Takes a call whose name is not in `names` for text.

    Arguments are emitted character by character. If other keys precede them, or the keys are in
    another order, they are emitted when the call's object ends. Keys after the arguments are
    ignored. Arguments may also be a string that contains their object.
    """

    def __init__(self, layout: JsonLayout, names: Collection[str], schemas: Schemas) -> None:
        super().__init__(layout, names, schemas)
        self._scanner = JsonScanner()

    def _begin_arguments(self) -> None:
        self._scanner, self._state = JsonScanner(), self._in_arguments

    def _in_arguments(self, char: str) -> list[CallEvent]:
        if self._scanner.is_outside and char != "{":
            # Only whitespace may precede the arguments object. Anything else ends the section.
            if char.isspace():
                return []
            if char == '"' and self._layout.is_object:
                self._scanner.push(char)
                self._state = self._in_text
                return []
            return self._end_with_rest()
        self._raw = ""
        if self._scanner.push(char):
            self._end_arguments()
        return [CallArguments(char)]

    def _in_text(self, char: str) -> list[CallEvent]:
        """Read arguments that are a JSON string of their object."""
        self._scanner.push(char)
        if not self._scanner.is_outside:
            return []
        arguments = read_json_text(self._raw)
        if arguments is None:
            return self._end_with_rest()
        self._raw = ""
        self._end_arguments()
        return [CallArguments(arguments)]

    def _end_arguments(self) -> None:
        self.is_cut = False
        self._expect([self._layout.after_arguments], self._after_arguments)
        if self._matcher.matched is not None:
            self._expect_next_call()

    def _after_arguments(self, char: str) -> list[CallEvent]:
        if self._layout.is_object and self._matcher.raw.strip() == "" and char == ",":
            self._scanner, self._state = JsonScanner(depth=1), self._in_other_keys
            return []
        if not self._matcher.push(char):
            return self._end_with_rest()
        if self._layout.is_object and char == "}":  # it is part of the call whatever follows
            self._raw = ""
        if self._matcher.matched is not None:
            self._expect_next_call()
        return []

    def _in_other_keys(self, char: str) -> list[CallEvent]:
        if self._scanner.push(char):
            self._end_object()
        return []

    def _end_object(self) -> None:
        closing = self._layout.after_arguments.removeprefix("}").strip()
        if closing:
            self._expect([closing], self._after_arguments)
        else:
            self._expect_next_call()

    def _handle_mismatch(self) -> list[CallEvent]:
        return self._as_object()

    def _handle_mismatch_between(self) -> list[CallEvent]:
        if self._layout.is_object and self._may_be_object():
            return self._as_object()
        return self._end_with_rest()

    def _may_be_object(self) -> bool:
        separator = "".join(self._layout.separator.split())
        return "".join(self._raw.split()).startswith(separator + "{")

    def _as_object(self) -> list[CallEvent]:
        """Read the call, which does not match the layout, as a whole object if one has begun."""
        start = self._raw.find("{")
        if not self._layout.is_object or start < 0:
            return self._end_with_rest()
        self._scanner, self._state = JsonScanner(), self._in_object
        for position, char in enumerate(self._raw[start:]):
            if self._scanner.push(char):
                # The layout has no `}` before the arguments, so only the last character ends it.
                assert start + position == len(self._raw) - 1
                return self._take_object()
        return []

    def _in_object(self, char: str) -> list[CallEvent]:
        return self._take_object() if self._scanner.push(char) else []

    def _take_object(self) -> list[CallEvent]:
        call = _read_call(self._raw[self._raw.find("{") :])
        if call is None or call[0] not in self._names:
            return self._end_with_rest()
        self._num_calls += 1
        self._raw = ""
        self._end_object()
        return [CallStart(call[0]), CallArguments(call[1])]


def _read_call(text: str) -> tuple[str, str] | None:
    """The name and arguments (JSON text) of a call's object; None if it is not a call."""
    try:
        value = load_json(text)
    except ValueError:
        return None
    name = next((value[key] for key in _NAME_KEYS if key in value), None)
    arguments: object = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    text = json.dumps(arguments, ensure_ascii=False)
    if isinstance(arguments, str):
        text = read_json_text(text) or ""
    elif not isinstance(arguments, dict):
        return None
    return (name, text) if isinstance(name, str) and text else None
