"""Reads sections of calls with bare keys (see `DictLayout`)."""

import json
from collections.abc import Collection

from stonechat_server.parsers.layouts.dict_values import DictScanner, read_dict_value, read_key
from stonechat_server.parsers.layouts.layout_reader import LayoutReader, Schemas
from stonechat_server.parsers.layouts.tag_values import allows_text, read_value, resolve
from stonechat_server.tool_formats.layout import CallArguments, CallEvent, DictLayout


class DictCallsReader(LayoutReader[DictLayout]):
    """Emits each argument when it ends."""

    def __init__(self, layout: DictLayout, names: Collection[str], schemas: Schemas) -> None:
        super().__init__(layout, names, schemas)
        self._num_keys = 0
        self._pair = ""
        """The text of the argument so far, with its key."""
        self._scanner = DictScanner(layout.quote)

    def _begin_arguments(self) -> None:
        self._state = self._at_brace

    def _at_brace(self, char: str) -> list[CallEvent]:
        if char == "{":
            self._num_keys, self._pair = 0, ""
            self._scanner, self._state = DictScanner(self._layout.quote), self._in_pair
        elif not char.isspace():
            return self._end_with_rest()
        return []

    def _in_pair(self, char: str) -> list[CallEvent]:
        self._raw = ""
        if not (self._scanner.is_outside and char in ",}"):
            self._pair += char
            self._scanner.push(char)
            return []
        events = self._end_pair()
        if char == "}":
            self.is_cut = False
            events.append(CallArguments("}" if self._num_keys else "{}"))
            self._expect([self._layout.after_arguments], self._after_arguments)
        return events

    def _end_pair(self) -> list[CallEvent]:
        pair, self._pair = self._pair, ""
        if not pair.strip():
            return []
        key, text = read_key(pair, self._layout.quote)
        value = read_dict_value(text, self._layout.quote)
        schema = self._schemas.get(self._name, {})
        value_schema = resolve(schema.get("properties", {}).get(key), schema)
        if isinstance(value, str) and not allows_text(value_schema):
            value = read_value(value, value_schema)
        self._num_keys += 1
        text = f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        return [CallArguments(("{" if self._num_keys == 1 else ", ") + text)]

    def _after_arguments(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._end_with_rest()
        if self._matcher.matched is not None:
            self._expect_next_call()
        return []
