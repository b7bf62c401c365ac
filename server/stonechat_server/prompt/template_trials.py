"""Finds out by small renders how a chat template treats system messages, calls and results."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.reasoning_names import NAMES

Render = Callable[[Sequence[TemplateMessage], Sequence[dict[str, Any]]], str]
"""Renders messages and tools, and raises anything."""

MARK, LATER_MARK, TEXT_MARK = "stonechat-trial", "stonechat-later", "stonechat-text"
Beside = Literal["kept", "apart", "lost"]
"""What becomes of a text beside calls: it is in the prompt; it is there as a message of its own
before the calls; or neither."""
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": MARK}
CALLED = "trial_call"
ANSWER = {"role": "assistant", "content": "Ok"}
OBJECT, LATER_OBJECT = {"value": MARK}, {"value": LATER_MARK}
TEXT, LATER_TEXT = json.dumps(OBJECT), json.dumps(LATER_OBJECT)
TOOL = {
    "type": "function",
    "function": {
        "name": "trial",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"value": {"type": "string", "description": "a text"}},
        },
    },
}


class TemplateTrials:
    """What trial renders show. Each is made once, when its result is first needed."""

    def __init__(self, render: Render) -> None:
        self._render = render

    @cached_property
    def takes_system(self) -> bool:
        """Whether a system message at the beginning is in the prompt.

        A template that refuses such a message, or leaves its text out, does not take it.
        """
        without, added = self._with_and_without_system
        return without is None or MARK in (added or "")

    @cached_property
    def keeps_default_system(self) -> bool:
        """Whether the template's own system text, if it has one, stays beside a system message."""
        without, added = self._with_and_without_system
        if without is None or added is None:
            return True
        num_kept = _num_equal(without, added) + _num_equal(without[::-1], added[::-1])
        return num_kept >= len(without)

    @cached_property
    def takes_later_system(self) -> bool:
        """Whether a second system message is in the prompt beside the first."""
        prompt = self._try([SYSTEM, {**SYSTEM, "content": LATER_MARK}, USER]) or ""
        return MARK in prompt and LATER_MARK in prompt

    @cached_property
    def call_content(self) -> str | None:
        """The content that a message with calls only must have: null, if `""` hides the calls."""
        for content in ("", None):
            for arguments in (OBJECT, TEXT):
                messages = _calls(arguments, content=content)
                if CALLED in (self._try(messages, [TOOL]) or ""):
                    return content
        return ""

    @cached_property
    def arguments(self) -> Literal["object", "text", "unknown"]:
        """How the template takes the arguments of calls: as an object, or as JSON text.

        It takes no object if one fails, or is rendered as Python writes it.
        """
        content = self.call_content
        as_object = self._try(_calls(OBJECT, content=content), [TOOL])
        if as_object is not None and repr(OBJECT) not in as_object:
            return "object"
        as_text = self._try(_calls(TEXT, content=content), [TOOL])
        return "unknown" if as_text is None else "text"

    @cached_property
    def shows_text_arguments(self) -> bool:
        """Whether arguments that are JSON text are in the prompt."""
        prompt = self._try(_calls(TEXT, content=self.call_content), [TOOL])
        return MARK in (prompt or "")

    @cached_property
    def shows_several_calls(self) -> bool:
        """Whether a message may have more than one call, and all of them are in the prompt."""
        one = self._try(self._call_turn(), [TOOL])
        two = self._try(self._call_turn(num_calls=2), [TOOL])
        return one is None or (two is not None and (MARK not in one or LATER_MARK in two))

    @cached_property
    def text_beside_calls(self) -> Beside:
        """What becomes of the text beside calls."""
        return self._beside(())

    @cached_property
    def text_beside_earlier_calls(self) -> Beside:
        """What becomes of the text beside calls before the user's latest message."""
        return self._beside((ANSWER, USER))

    def _beside(self, later: Sequence[TemplateMessage]) -> Beside:
        user, call, result = self._call_turn(content=TEXT_MARK)
        text, empty = {"role": "assistant", "content": TEXT_MARK}, self.call_content
        ways: list[tuple[Beside, list[TemplateMessage]]] = [
            ("kept", [user, call, result]),
            ("apart", [user, text, {**call, "content": empty}, result]),
        ]
        for way, messages in ways:
            prompt = self._try([*messages, *later], [TOOL]) or ""
            if MARK in prompt and TEXT_MARK in prompt:
                return way
        return "lost"

    @cached_property
    def takes_reasoning_beside_text(self) -> bool:
        """Whether a message with calls may have both text and reasoning."""
        user, call, result = self._call_turn(content=TEXT_MARK)
        reasoned = {**call, **dict.fromkeys(NAMES, MARK)}
        return self._try([user, reasoned, result], [TOOL]) is not None

    @cached_property
    def takes_lone_results(self) -> bool:
        """Whether results that follow no call are in the prompt."""
        result = {"role": "tool", "tool_call_id": "trial0000"}
        marked = [{**result, "content": mark} for mark in (MARK, LATER_MARK)]
        prompt = self._try([USER, marked[0], ANSWER, marked[1]], [TOOL]) or ""
        return MARK in prompt and LATER_MARK in prompt

    @cached_property
    def takes_lone_system(self) -> bool:
        """Whether a system message that is the only message is in the prompt."""
        return all(MARK in (self._try([SYSTEM], tools) or "") for tools in ([], [TOOL]))

    def _call_turn(self, content: str | None = None, num_calls: int = 1) -> list[TemplateMessage]:
        """Calls, whose arguments are as the template takes them, and their results."""
        arguments = (TEXT, LATER_TEXT) if self.arguments == "text" else (OBJECT, LATER_OBJECT)
        content = self.call_content if content is None else content
        return _calls(*arguments[:num_calls], content=content)

    @cached_property
    def _with_and_without_system(self) -> tuple[str | None, str | None]:
        """Prompts without a system message and with one; the first is None if it always fails."""
        for tools in ([], [TOOL]):
            without = self._try([USER], tools)
            if without is not None:
                return without, self._try([SYSTEM, USER], tools)
        return None, None

    def _try(
        self, messages: Sequence[TemplateMessage], tools: Sequence[dict[str, Any]] = ()
    ) -> str | None:
        try:
            return self._render(messages, tools)
        except Exception:  # a template is foreign code and may raise anything
            return None


def shows_only_parts(render: Callable[[dict[str, Any]], str]) -> bool:
    """Whether a template leaves out content that is text, and shows that of a list of parts.

    `render` renders variables, and raises anything.
    """

    def shows(content: str | list[dict[str, str]]) -> bool:
        try:
            return MARK in render({"messages": [{"role": "user", "content": content}]})
        except Exception:  # a template is foreign code and may raise anything
            return False

    return not shows(MARK) and shows([{"type": "text", "text": MARK}])


def _num_equal(one: str, other: str) -> int:
    """Count the equal characters at the beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _calls(*arguments: dict[str, Any] | str, content: str | None) -> list[TemplateMessage]:
    """A conversation with one call for each of `arguments`. Ids are as the strictest want them."""
    ids = [f"trial{number:04d}" for number in range(len(arguments))]
    calls = [
        {"id": call_id, "type": "function", "function": {"name": CALLED, "arguments": value}}
        for call_id, value in zip(ids, arguments, strict=True)
    ]
    result = {"role": "tool", "name": CALLED, "content": "1"}
    return [
        USER,
        {"role": "assistant", "content": content, "tool_calls": calls},
        *({**result, "tool_call_id": call_id} for call_id in ids),
    ]
