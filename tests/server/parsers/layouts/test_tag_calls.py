"""Sections of calls with tags that do not follow their layout."""

import json
from typing import Any

import pytest

from stonechat_server.parsers.layouts.tag_calls import TagCallsReader
from stonechat_server.tool_formats.deepseek import DEEPSEEK_V32
from stonechat_server.tool_formats.glm import GLM
from stonechat_server.tool_formats.layout import CallStart, TagLayout, ToolFormat
from stonechat_server.tool_formats.qwen_coder import QWEN_CODER

TEXT, NUMBER = {"type": "string"}, {"type": "number"}
SCHEMAS: dict[str, Any] = {
    "add": {"type": "object", "properties": {"a": NUMBER, "text": TEXT}},
    "now": {"type": "object"},
}


def read(format: ToolFormat, text: str) -> tuple[list[tuple[str, str]], str | None, bool]:
    """Return the calls of a section without its trigger, the rest, and whether a call is cut."""
    assert isinstance(format.layout, TagLayout)
    reader = TagCallsReader(format.layout, SCHEMAS, SCHEMAS)
    events = []
    calls: list[tuple[str, str]] = []
    for position, char in enumerate(text):
        events += reader.push(char)
        if reader.rest is not None:
            reader.rest += text[position + 1 :]
            break
    events += reader.finish()
    for event in events:
        if isinstance(event, CallStart):
            calls.append((event.name, ""))
        else:
            calls[-1] = (calls[-1][0], calls[-1][1] + event.text)
    return calls, reader.rest, reader.is_cut


def whole_calls(format: ToolFormat, text: str) -> tuple[list[tuple[str, Any]], str | None]:
    calls, rest, is_cut = read(format, text)
    assert not is_cut
    return [(name, json.loads(arguments)) for name, arguments in calls], rest


@pytest.mark.parametrize(
    "text",
    [
        "\n<function=other>\n</function>\n</tool_call>",
        "\n<function=now/>\n</function>\n</tool_call>",
        "\n<function=now",
        "\n<fun=now>",
        "now",
        "\n",
    ],
)
def test_what_is_no_call_is_left_whole(text: str) -> None:
    assert read(QWEN_CODER, text) == ([], text, False)


def test_space_before_a_name_is_ignored() -> None:
    text = "\n<function= now>\n</function>\n</tool_call>"
    assert whole_calls(QWEN_CODER, text) == ([("now", {})], "")


def test_text_after_a_call_is_the_rest() -> None:
    text = "\n<function=now>\n</function>\n</tool_call>"
    assert whole_calls(QWEN_CODER, text + " ok") == ([("now", {})], " ok")
    assert whole_calls(QWEN_CODER, text + "\n<tool_c") == ([("now", {})], "")


def test_text_between_arguments_ends_the_section() -> None:
    calls, rest, is_cut = read(QWEN_CODER, "\n<function=now>\nplease</function>\n</tool_call>")
    assert calls == [("now", "")]
    assert rest is not None
    assert (rest.strip(), is_cut) == ("please</function>\n</tool_call>", True)


def test_arguments_may_be_one_object() -> None:
    text = '\n<function=add>\n{"a": 1, "text": "}"}\n</function>\n</tool_call>'
    assert whole_calls(QWEN_CODER, text) == ([("add", {"a": 1, "text": "}"})], "")
    calls, rest, is_cut = read(QWEN_CODER, '\n<function=add>\n{"a": 1} ok')
    assert calls == [("add", '{"a": 1}')]
    assert rest is not None
    assert rest.strip() == "ok"
    assert not is_cut


def test_a_key_must_be_followed_by_its_value() -> None:
    calls, rest, is_cut = read(GLM, "add\n<arg_key>a</arg_key>\n<value>1</value>")
    assert calls == [("add", "")]
    assert rest is not None
    assert rest.endswith("<value>1</value>")
    assert is_cut


def test_a_value_that_is_cut_keeps_what_came() -> None:
    text = "\n<function=add>\n<parameter=text>\nHello"
    for tail in ("", "\n", "\n</par", "</parameter"):  # a closing tag that is cut is no text
        calls, rest, is_cut = read(QWEN_CODER, text + tail)
        assert calls == [("add", '{"text": "Hello')]
        assert (rest, is_cut) == ("", True)
    calls, rest, is_cut = read(QWEN_CODER, "\n<function=add>\n<parameter=a>\n1")
    assert calls == [("add", '{"a": ')]
    assert (rest, is_cut) == ("", True)


def test_a_call_may_say_which_values_are_json() -> None:
    layout = DEEPSEEK_V32.layout
    assert isinstance(layout, TagLayout)
    pieces = [
        layout.opening, layout.before_name, "add", layout.after_name,
        layout.before_key, "a", layout.after_json_keys[0], "[1]", layout.after_value,
        layout.before_key, "text", layout.after_key, "[1]", layout.after_value,
        layout.after_arguments, layout.closing,
    ]  # fmt: skip
    assert whole_calls(DEEPSEEK_V32, "".join(pieces)) == ([("add", {"a": [1], "text": "[1]"})], "")
    broken = "".join(pieces).replace('string="false"', 'string="maybe"')
    calls, rest, is_cut = read(DEEPSEEK_V32, broken)
    assert calls == [("add", "")]
    assert is_cut
    assert rest is not None
    assert broken.endswith(rest)
