"""Finds the texts that open a section of calls, or a call without its section."""

import re
from collections.abc import Collection

from stonechat_server.tool_formats.layout import (
    DictLayout,
    JsonLayout,
    PythonicLayout,
    TagLayout,
    ToolFormat,
)
from stonechat_server.tool_formats.openings import closing_mark, inner_opening


def inner_triggers(format: ToolFormat, functions: Collection[str]) -> tuple[str, ...]:
    """The texts that open a call of one of `functions` without the section around it."""
    opening, layout = inner_opening(format), format.layout
    if opening or not format.trigger:
        return tuple(opening + name for name in functions) if opening else ()
    match layout:
        case DictLayout(before_name=before):
            return tuple(f"{before}{name}{{" for name in functions)
        case PythonicLayout(opening="["):
            return tuple(f"[{name}(" for name in functions)
        case TagLayout(before_name="", before_key=key):
            return tuple(name + gap + key.strip() for name in functions for gap in ("", "\n"))
    return ()


def object_openings(format: ToolFormat, functions: Collection[str]) -> tuple[str, ...]:
    """The beginnings of JSON objects that are calls if the section's closing mark follows."""
    layout = format.layout
    is_object = isinstance(layout, JsonLayout) and layout.is_object
    if not is_object or not format.trigger or not closing_mark(format).startswith("<"):
        return ()
    return tuple(f'{{"name":{gap}"{name}"' for name in functions for gap in ("", " "))


class TriggerFinder:
    """Finds the first of several texts in text that arrives in pieces."""

    def __init__(self, triggers: Collection[str]) -> None:
        self._triggers = triggers
        self._pattern = re.compile("|".join(map(re.escape, triggers)) or r"(?!)")
        self._first_chars = frozenset(trigger[0] for trigger in triggers)
        self._max_held = max(map(len, triggers), default=1) - 1

    def find(self, text: str) -> tuple[int, str] | None:
        """The first trigger and its index, or None."""
        match = self._pattern.search(text)
        return None if match is None else (match.start(), match[0])

    def num_held(self, text: str) -> int:
        """Length of the longest suffix that may begin a trigger, if `text` has no whole one."""
        for start in range(max(0, len(text) - self._max_held), len(text)):
            if text[start] in self._first_chars:
                suffix = text[start:]
                if any(trigger.startswith(suffix) for trigger in self._triggers):
                    return len(suffix)
        return 0
