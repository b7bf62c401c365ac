"""Splits an answer's text into content and tool calls."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from stonechat_server.parsers import custom_calls
from stonechat_server.parsers.deltas import ContentDelta, ParsedDelta, ToolCallDelta, join
from stonechat_server.parsers.layouts.bare_reader import UnopenedCallReader
from stonechat_server.parsers.layouts.dict_calls import DictCallsReader
from stonechat_server.parsers.layouts.element_calls import ElementCallsReader
from stonechat_server.parsers.layouts.json_calls import JsonCallsReader
from stonechat_server.parsers.layouts.layout_reader import SectionReader
from stonechat_server.parsers.layouts.pythonic_calls import PythonicReader
from stonechat_server.parsers.layouts.tag_calls import TagCallsReader
from stonechat_server.parsers.triggers import TriggerFinder, inner_triggers, object_openings
from stonechat_server.tool_formats.layout import (
    CallArguments,
    CallEvent,
    CallStart,
    DictLayout,
    ElementLayout,
    HarmonyLayout,
    JsonLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
    new_call_id,
)
from stonechat_server.tool_formats.openings import closing_mark


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNames:
    """The tools that may be called."""

    functions: Collection[str]
    custom: Collection[str] = ()
    schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """JSON schemas of the functions' arguments. Formats that write values as text need them."""


def triggers(format: ToolFormat, names: ToolNames) -> tuple[str, ...]:
    """The texts that open a section of calls, or one call without a section."""
    found: tuple[str, ...] = ()
    if format.trigger and names.functions:
        found = (format.trigger, *inner_triggers(format, names.functions))
    return (*found, custom_calls.TRIGGER) if names.custom else found


@dataclass(slots=True)
class ToolCallParser:
    """A `DeltaParser`. Text around calls is content; whitespace next to a call is removed.

    Without `has_content` nothing is content: the answer must be calls.
    """

    format: ToolFormat
    names: ToolNames
    has_content: bool = True
    in_reasoning: bool = field(default=False, init=False)
    is_call_cut: bool = field(default=False, init=False)
    _held: str = field(default="", init=False)
    _reader: SectionReader | None = field(default=None, init=False)
    _trigger: str = field(default="", init=False)
    """The trigger of the section; it is empty if the trigger is part of a call."""
    _gap: str = field(default="", init=False)
    """Whitespace before the trigger."""
    _is_blank: bool = field(default=True, init=False)
    """Whether only whitespace has come since the beginning or since the last call."""
    _num_calls: int = field(default=0, init=False)
    _call: CallStart | None = field(default=None, init=False)
    _ids: set[str] = field(default_factory=set, init=False)
    _triggers: tuple[str, ...] = field(init=False)
    _finder: TriggerFinder = field(init=False)

    def __post_init__(self) -> None:
        self._triggers = triggers(self.format, self.names)
        openings = object_openings(self.format, self.names.functions)
        self._finder = TriggerFinder((*self._triggers, *openings))

    def feed(self, text: str, finished: bool) -> list[ParsedDelta]:
        self._held += text
        deltas: list[ParsedDelta] = []
        while self._step(deltas):
            pass
        if finished:
            self._finish(deltas)
        return _merge(deltas)

    def _step(self, deltas: list[ParsedDelta]) -> bool:
        """Consume some of the held text. False if more text must arrive first."""
        if self._reader is not None:
            return self._read_section(self._reader, deltas)
        if self._trigger:
            return self._read_trigger()
        if self._opens_at_start():
            if not self._held.strip():
                return False
            if self._held.lstrip()[0] == self.format.first:
                text = self._held.lstrip()
                self._gap, self._held = self._held[: -len(text)], text
                self._open("")
                return True
        return self._read_text(deltas)

    def _opens_at_start(self) -> bool:
        return not self.format.trigger and self._is_blank and not self._num_calls

    def _read_text(self, deltas: list[ParsedDelta]) -> bool:
        found = self._finder.find(self._held)
        if found is not None:
            position, trigger = found
            before, self._held = self._held[:position], self._held[position:]
            self._gap = before[len(before.rstrip()) :]
            self._content(before.rstrip(), deltas)
            if trigger in (self.format.trigger, custom_calls.TRIGGER):
                self._trigger, self._held = trigger, self._held[len(trigger) :]
            elif trigger in self._triggers:
                self._open("")
            else:
                self._reader = UnopenedCallReader(
                    self.names.functions, self.names.schemas, closing_mark(self.format)
                )
            return True
        num_held = self._finder.num_held(self._held)
        text = self._held[: len(self._held) - num_held].rstrip()
        self._held = self._held[len(text) :]
        self._content(text, deltas)
        return False

    def _read_trigger(self) -> bool:
        """Skip repetitions of the trigger, then open the section. False as `_step`."""
        text = self._held.lstrip()
        if text.startswith(self._trigger):
            self._held = text[len(self._trigger) :]
        elif self._trigger.startswith(text):
            return False
        else:
            self._open(self._trigger)
        return True

    def _content(self, text: str, deltas: list[ParsedDelta]) -> None:
        if self._is_blank and self._num_calls:
            text = text.lstrip()
        if text:
            self._is_blank = False
            self._add_text(text, deltas)

    def _add_text(self, text: str, deltas: list[ParsedDelta], may_be_call: bool = False) -> None:
        if self.has_content:
            deltas.append(ContentDelta(text, may_be_call))

    def _open(self, trigger: str) -> None:
        self._trigger = trigger
        if trigger == custom_calls.TRIGGER:
            self._reader = custom_calls.CustomCallReader(self.names.custom, self._triggers)
            return
        functions, schemas = self.names.functions, self.names.schemas
        match self.format.layout:
            case PythonicLayout() as layout:
                self._reader = PythonicReader(layout, functions)
            case DictLayout() as layout:
                self._reader = DictCallsReader(layout, functions, schemas)
            case ElementLayout() as layout:
                self._reader = ElementCallsReader(layout, functions, schemas)
            case JsonLayout() as layout:
                self._reader = JsonCallsReader(layout, functions, schemas)
            case TagLayout() as layout:
                self._reader = TagCallsReader(layout, functions, schemas)
            case HarmonyLayout():
                raise AssertionError("harmony answers have their own parser: HarmonyParser")

    def _read_section(self, reader: SectionReader, deltas: list[ParsedDelta]) -> bool:
        for position, char in enumerate(self._held):
            self._add(reader.push(char), deltas)
            if reader.rest is not None:
                self._held = reader.rest + self._held[position + 1 :]
                self._close(deltas)
                return True
        self._held = ""
        return False

    def _close(self, deltas: list[ParsedDelta]) -> None:
        """End the section. A section without a call is text after all."""
        self.is_call_cut |= self._reader is not None and self._reader.is_cut
        self._reader = None
        if self._call is None:
            length = 0 if self._trigger else 1
            self._add_text(self._gap + self._trigger + self._held[:length], deltas)
            self._held, self._trigger = self._held[length:], ""
            self._is_blank = False
            return
        self._call = None
        self._trigger = ""
        self._is_blank = True

    def _add(self, events: list[CallEvent], deltas: list[ParsedDelta]) -> None:
        for event in events:
            if isinstance(event, CallStart):
                self._call = event
                self._num_calls += 1
                index, call_id = self._num_calls - 1, self._new_id(event)
                deltas.append(
                    ToolCallDelta(index=index, id=call_id, name=event.name, type=event.type)
                )
            elif isinstance(event, CallArguments):
                assert self._call is not None
                deltas.append(
                    ToolCallDelta(
                        index=self._num_calls - 1, arguments=event.text, type=self._call.type
                    )
                )

    def _new_id(self, call: CallStart) -> str:
        """The id that the model wrote, renumbered if it is not unique; else a random one.

        A format whose ids have a form of their own gets a random one in place of a number.
        """
        has_own_form = self.format.new_id is not new_call_id
        if call.id is None or (call.id in self._ids and has_own_form):
            return self.format.new_id()
        call_id, number = call.id, 0
        while call_id in self._ids:
            number += 1
            call_id = re.sub(r"[0-9]*$", str(number), call.id)
        self._ids.add(call_id)
        return call_id

    def _finish(self, deltas: list[ParsedDelta]) -> None:
        while self._step(deltas) or self._end_wait(deltas):
            pass
        self._end_in_text(deltas)

    def _end_wait(self, deltas: list[ParsedDelta]) -> bool:
        """End what waits for more text, as none follows. False if there is no more to read."""
        if self._reader is not None:
            self._add(self._reader.finish(), deltas)
            self._held = (self._reader.rest or "") + self._held
        elif not self._trigger:
            return False
        if self._call is not None:
            self._close(deltas)
            return True
        self._end_in_section(deltas)
        return False

    def _end_in_section(self, deltas: list[ParsedDelta]) -> None:
        """End the answer in a section that has no call yet."""
        is_stray = self._num_calls and self._is_blank and not self._held.strip()
        if not is_stray:
            may_be_call = not isinstance(self._reader, UnopenedCallReader)
            self._add_text(self._gap + self._trigger + self._held, deltas, may_be_call)
        self._reader, self._held = None, ""

    def _end_in_text(self, deltas: list[ParsedDelta]) -> None:
        if self._held and not (self._is_blank and self._num_calls):
            opening = self._held[len(self._held) - self._finder.num_held(self._held) :]
            starts_line = self._is_blank or "\n" in self._held
            is_mark = len(opening) > 1 and not opening[0].isalpha()
            may_be_call = opening[:1] not in ("", "{") and (starts_line or is_mark)
            self._add_text(self._held, deltas, may_be_call)
        self._held = ""


def _merge(deltas: list[ParsedDelta]) -> list[ParsedDelta]:
    """Join neighbouring deltas of content, and of the same call."""
    merged: list[ParsedDelta] = []
    for delta in deltas:
        joined = join(merged[-1], delta) if merged else None
        if joined is None:
            merged.append(delta)
        else:
            merged[-1] = joined
    return merged
