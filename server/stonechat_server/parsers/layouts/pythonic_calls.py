"""Reads a Python list of calls (see `PythonicLayout`); values may be Python or JSON literals."""

import ast
import json
from collections.abc import Collection
from typing import Any, ClassVar

from stonechat_server.parsers.layouts.layout_reader import SectionReader
from stonechat_server.parsers.scanners import JsonScanner, LiteralMatcher
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, CallStart, PythonicLayout

UNPACK = "**"


class PythonicReader(SectionReader):
    """Emits each argument as a piece of JSON when it ends."""

    def __init__(self, layout: PythonicLayout, names: Collection[str]) -> None:
        super().__init__(names)
        self._layout = layout
        self._matcher = LiteralMatcher([layout.opening])
        self._word = ""
        self._keys: list[str] = []
        self._value = ""
        self._scanner = JsonScanner()
        self._state = self._at_start if layout.opening else self._in_name

    def _at_start(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._end_with_rest()
        if self._matcher.matched is not None:
            self._word, self._state = "", self._in_name
        return []

    def _in_name(self, char: str) -> list[CallEvent]:
        if char != "(":
            self._word += char
            return self._end_with_rest() if char in "[]{}'\"=," else []
        name = self._word.strip()
        if name not in self._names:
            return self._end_with_rest()
        self._num_calls += 1
        self.is_cut = True
        self._raw, self._word, self._keys, self._state = "", "", [], self._in_key
        return [CallStart(name)]

    def _in_key(self, char: str) -> list[CallEvent]:
        if char == ")" and not self._word.strip():
            return self._end_call()
        self._word += char
        if char == "=" or self._word.strip() == UNPACK:
            self._keys.append(self._word.strip().removesuffix("=").strip())
            self._word, self._value = "", ""
            self._scanner, self._state = JsonScanner(quotes="\"'"), self._in_value
        return []

    def _in_value(self, char: str) -> list[CallEvent]:
        if self._scanner.is_outside and char in ",)":
            pieces = self._end_value()
            if char == ")":
                pieces += self._end_call()
            else:
                self._state = self._in_key
            return pieces
        self._value += char
        self._scanner.push(char)
        return []

    def _end_value(self) -> list[CallEvent]:
        value = read_literal(self._value)
        self._raw = ""
        if self._keys[-1] == UNPACK and isinstance(value, dict):
            text = json.dumps(value, ensure_ascii=False)[1:-1]
        else:
            text = f"{json.dumps(self._keys[-1])}: {json.dumps(value, ensure_ascii=False)}"
        return [CallArguments(("{" if len(self._keys) == 1 else ", ") + text)]

    def _end_call(self) -> list[CallEvent]:
        self._raw, self._state, self.is_cut = "", self._between, False
        return [CallArguments("}" if self._keys else "{}")]

    def _between(self, char: str) -> list[CallEvent]:
        """Read the separator, or the end of the list. Commas may stand for a separator."""
        self._matcher = LiteralMatcher([self._layout.closing])
        if self._matcher.push(char) and not char.isspace():
            self._state = self._at_closing
            if char == "]":  # the list's own end is part of the section whatever follows
                self._raw = ""
            return self._end_at_closing()
        if char == ",":
            self._word, self._state = "", self._in_name
        elif not char.isspace():
            if self._layout.separator.strip() or not _begins_name(char):
                return self._end_with_rest()
            self._word, self._state = char, self._in_name
        return []

    def _at_closing(self, char: str) -> list[CallEvent]:
        return self._end_at_closing() if self._matcher.push(char) else self._end_with_rest()

    def _end_at_closing(self) -> list[CallEvent]:
        if self._matcher.matched is not None:
            self.rest = ""
        return []


def _begins_name(char: str) -> bool:
    return char.isalpha() or char == "_"


class _JsonWords(ast.NodeTransformer):
    """Makes JSON's words constants, also beside Python's own: `{'a': null, "b": True}`."""

    WORDS: ClassVar = {"true": True, "false": False, "null": None}

    def visit_Name(self, node: ast.Name) -> ast.expr:  # the name that ast demands
        return ast.Constant(self.WORDS[node.id]) if node.id in self.WORDS else node


def _read_python(text: str) -> Any:
    return ast.literal_eval(_JsonWords().visit(ast.parse(text, mode="eval")))


def read_literal(text: str) -> Any:
    """Read a JSON value or a Python literal that JSON can express. Return other text, stripped."""
    for read in (json.loads, _read_python):
        try:
            value = read(text.strip())
            json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        return value
    return text.strip()
