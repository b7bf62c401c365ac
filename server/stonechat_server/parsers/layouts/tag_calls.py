"""Reads sections of calls whose arguments stand between tags (see `TagLayout`)."""

import json
from collections.abc import Collection
from itertools import takewhile

from stonechat_server.parsers.layouts.layout_reader import LayoutReader, Schemas
from stonechat_server.parsers.layouts.tag_values import (
    NULLS,
    ValueForm,
    is_whole,
    read_value,
    resolve,
    value_form,
)
from stonechat_server.parsers.scanners import JsonScanner
from stonechat_server.tool_formats.layout import (
    CDATA_END,
    CDATA_START,
    CallArguments,
    CallEvent,
    TagLayout,
    hold_back,
)


class TagCallsReader(LayoutReader[TagLayout]):
    """Emits strings as they arrive, and other values when they end.

    A line break next to a tag belongs to the tag if the layout has a line break there.
    """

    def __init__(self, layout: TagLayout, names: Collection[str], schemas: Schemas) -> None:
        super().__init__(layout, names, schemas)
        self._key = self._held = ""
        self._keys: set[str] = set()
        self._num_keys = 0
        self._schema: object = None
        self._form = ValueForm.JSON
        self._is_open = False
        """Whether the opening quotation mark of a string has been emitted."""
        self._key_end, self._key_rests = _split_key(layout)
        self._value_end = layout.after_value.strip()
        self._call_end, *self._section_end = layout.after_arguments.split()
        self._scanner = JsonScanner()

    def finish(self) -> list[CallEvent]:
        """What is held back of a value that is cut is a part of the closing tag."""
        if self.rest is not None:
            return []
        super().finish()
        if self._state == self._in_body and self._is_complete():
            self.is_cut = False
            return [self._last_brace()]
        return []

    def _is_complete(self) -> bool:
        """Whether the arguments so far fit the schema, so that only closing tags are missing."""
        schema = self._schemas.get(self._name)
        return schema is not None and self._keys.issuperset(schema.get("required", ()))

    def _last_brace(self) -> CallArguments:
        return CallArguments("}" if self._num_keys else "{}")

    def _begin_arguments(self) -> None:
        self._keys, self._num_keys = set(), 0
        self._expect_argument()

    def _expect_argument(self) -> None:
        self._expect([self._layout.before_key, self._call_end, *self._section_end], self._in_body)

    def _in_body(self, char: str) -> list[CallEvent]:
        if char == "{" and not self._num_keys and not self._matcher.raw.strip():
            self._scanner, self._state = JsonScanner(), self._in_object
            return self._in_object(char)
        if not self._matcher.push(char):
            return self._end_with_rest()
        match self._matcher.matched:
            case 0:
                self._key, self._state = "", self._in_key
            case int(matched):
                self._end_call(has_section_end=matched > 1)
                return [self._last_brace()]
        return []

    def _end_call(self, has_section_end: bool) -> None:
        """The call has ended. A model may leave out its closing tag, or that of the section."""
        self._expect_next_call()
        if self._section_end and not has_section_end:
            self._expect(self._section_end, self._after_call)

    def _after_call(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._end_with_rest()
        if self._matcher.matched is not None:
            self._expect_next_call()
        return []

    def _in_object(self, char: str) -> list[CallEvent]:
        self._raw = ""
        if self._scanner.push(char):
            self.is_cut = False
            self._expect([self._call_end, *self._section_end], self._after_object)
        return [CallArguments(char)]

    def _after_object(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._end_with_rest()
        if self._matcher.matched is not None:
            self._end_call(has_section_end=self._matcher.matched > 0)
        return []

    def _in_key(self, char: str) -> list[CallEvent]:
        self._key += char
        if not self._key.endswith(self._key_end):
            return []
        self._key = self._key.removesuffix(self._key_end)
        if self._key_rests:
            self._expect(self._key_rests, self._after_key)
            return []
        return self._start_value(None)

    def _after_key(self, char: str) -> list[CallEvent]:
        if not self._matcher.push(char):
            return self._end_with_rest()
        matched = self._matcher.matched
        if matched is None:
            return []
        if not self._layout.after_json_keys:
            return self._start_value(None)
        return self._start_value(ValueForm.JSON if matched else ValueForm.TEXT)

    def _start_value(self, form: ValueForm | None) -> list[CallEvent]:
        """Begin a value of this form. None: the call does not state it, so the schema decides."""
        schema = self._schemas.get(self._name, {})
        self._schema = resolve(schema.get("properties", {}).get(self._key), schema)
        self._form = form or value_form(self._schema, self._value_end)
        self._keys.add(self._key)
        self._num_keys += 1
        self._raw = self._held = ""
        self._is_open, self._state = False, self._in_value
        key = json.dumps(self._key, ensure_ascii=False)
        return [CallArguments(("{" if self._num_keys == 1 else ", ") + key + ": ")]

    def _in_value(self, char: str) -> list[CallEvent]:
        self._raw = ""
        self._held += char
        if self._is_cdata():
            return self._end_cdata()
        if self._held.endswith(self._value_end):
            text = self._strip(self._held.removesuffix(self._value_end))
            if self._form is ValueForm.JSON and not is_whole(text):
                return []
            self._held = ""
            self._expect_argument()
            return [CallArguments(self._last_piece(text))]
        return self._stream()

    def _is_cdata(self) -> bool:
        """Whether the value begins with `CDATA_START`, or may still do so."""
        if not self._layout.has_cdata or self._is_open:
            return False
        text = self._held.lstrip()
        return text.startswith(CDATA_START) or CDATA_START.startswith(text)

    def _end_cdata(self) -> list[CallEvent]:
        """End the value if its text is complete."""
        text = self._held.strip().removesuffix(self._value_end)
        if text == self._held.strip() or not text.rstrip().endswith(CDATA_END):
            return []
        self._held = ""
        self._expect_argument()
        text = text.rstrip().removeprefix(CDATA_START).removesuffix(CDATA_END)
        return [CallArguments(self._last_piece(text))]

    def _strip(self, text: str) -> str:
        """Remove the line breaks that belong to the tags."""
        if self._layout.after_key.endswith("\n") and not self._is_open:
            text = text.removeprefix("\n")
        if self._layout.after_value.startswith("\n"):
            text = text.removesuffix("\n")
        return text

    def _last_piece(self, text: str) -> str:
        if self._is_open:
            return _quoted(text) + '"'
        if self._form is ValueForm.JSON:
            return json.dumps(read_value(text, self._schema), ensure_ascii=False)
        if self._form is ValueForm.TEXT_OR_NULL and text in NULLS:
            return "null"
        return f'"{_quoted(text)}"'

    def _stream(self) -> list[CallEvent]:
        """Emit the text of a string, except an end that may be part of the closing tag."""
        if self._form is ValueForm.JSON:
            return []
        num_held = hold_back(self._held, (self._value_end, "\n" + self._value_end))
        text = self._held[: len(self._held) - num_held]
        if not self._is_open:
            if self._layout.after_key.endswith("\n"):
                text = text.removeprefix("\n")
            may_be_null = any(null.startswith(text) for null in NULLS)
            if not text or (self._form is ValueForm.TEXT_OR_NULL and may_be_null):
                return []
        self._held = self._held[len(self._held) - num_held :]
        piece = _quoted(text) if self._is_open else f'"{_quoted(text)}'
        self._is_open = True
        return [CallArguments(piece)] if text else []


def _split_key(layout: TagLayout) -> tuple[str, list[str]]:
    """The text that ends a key, and the texts one of which follows it before the value."""
    if layout.after_json_keys:
        texts = [layout.after_key, *layout.after_json_keys]
        end = "".join(chars[0] for chars in takewhile(_are_equal, zip(*texts, strict=False)))
        return end, [text.removeprefix(end) for text in texts]
    end, _, rest = layout.after_key.partition("\n")
    return end, [rest.strip()] if rest.strip() else []


def _are_equal(chars: tuple[str, ...]) -> bool:
    return len(set(chars)) == 1


def _quoted(text: str) -> str:
    """`text` as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
