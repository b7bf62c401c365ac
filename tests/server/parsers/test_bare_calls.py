"""An answer that begins with a call as plain JSON is that call; other JSON stays text."""

import json
from typing import Any

import pytest

from stonechat_server.parsers.bare_calls import BareCallParser, may_be_bare
from stonechat_server.parsers.deltas import ContentDelta, ToolCallDelta
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.tool_formats.hermes import HERMES
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.select import FORMATS
from stonechat_server.tool_formats.tool_list import NEMOTRON
from stonechat_server.tool_formats.whole_answer import PYTHONIC

SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "get": {"type": "object", "properties": {}},
}
NAMES = ToolNames(functions=tuple(SCHEMAS), schemas=SCHEMAS)
PARIS_ARGUMENTS = '{"city": "Paris", "unit": "celsius"}'
PARIS = f'{{"name": "get_weather", "arguments": {PARIS_ARGUMENTS}}}'
GET = '{"name": "get", "parameters": {}}'
PARIS_CALL = ("get_weather", json.loads(PARIS_ARGUMENTS))
GET_CALL: tuple[str, Any] = ("get", {})
TAGGED = f"<tool_call>\n{GET}\n</tool_call>".replace("parameters", "arguments")

CALLS: dict[str, tuple[str, str, list[tuple[str, Any]]]] = {
    "bare": (PARIS, "", [PARIS_CALL]),
    "with whitespace": (f"\n\n {PARIS}\n", "", [PARIS_CALL]),
    "pretty": (json.dumps(json.loads(PARIS), indent=2), "", [PARIS_CALL]),
    "parameters": (GET, "", [GET_CALL]),
    "function": (PARIS.replace('"name"', '"function"'), "", [PARIS_CALL]),
    "function and a type": (f'{{"type": "function", "function": {GET[9:]}', "", [GET_CALL]),
    "the object of OpenAI's API": (
        json.dumps({"id": "a", "type": "function", "function": json.loads(PARIS)}),
        "",
        [PARIS_CALL],
    ),
    "a call within a call": (f'{{"function_call": {PARIS}}}', "", [PARIS_CALL]),
    "a list of calls within an object": (
        f'```\n{{"tool_calls": [{PARIS}, {{"type": "function", "function": {GET}}}]}}\n```',
        "",
        [PARIS_CALL, GET_CALL],
    ),
    "arguments that are a text": (
        json.dumps({"tool_name": "get_weather", "arguments": PARIS_ARGUMENTS}),
        "",
        [PARIS_CALL],
    ),
    "an action": ('{"action": "get", "action_input": {}}', "", [GET_CALL]),
    "arguments first": (
        f'{{"arguments": {PARIS_ARGUMENTS}, "name": "get_weather"}}',
        "",
        [PARIS_CALL],
    ),
    "with a type and an id": (
        f'{{"type": "function", "id": "c1", {PARIS[1:]}',
        "",
        [PARIS_CALL],
    ),
    "in a fence": (f"```json\n{PARIS}\n```", "", [PARIS_CALL]),
    "in another fence": (f"```tool_call\n{PARIS}\n```", "", [PARIS_CALL]),
    "in a plain fence": (f"``` \n{PARIS}```\n", "", [PARIS_CALL]),
    "in a fence that is not closed": (f"```json\n{PARIS}\n``", "", [PARIS_CALL]),
    "in a tag": (f"<tools>\n{PARIS}\n</tools>", "", [PARIS_CALL]),
    "in a tag that is not closed": (f"<function_call>{PARIS}", "", [PARIS_CALL]),
    "a list in a tag": (f"<json>[{PARIS}, {GET}]</json> Ok", "Ok", [PARIS_CALL, GET_CALL]),
    "a list": (f"[{PARIS}, {GET}]", "", [PARIS_CALL, GET_CALL]),
    "a list in a fence": (f"```json\n[\n{PARIS},\n{GET}\n]\n```", "", [PARIS_CALL, GET_CALL]),
    "several": (f"{PARIS}\n{GET}", "", [PARIS_CALL, GET_CALL]),
    "the closing tag only": (f"{PARIS}\n</tool_call>", "", [PARIS_CALL]),
    "text after": (f"{PARIS}\nLet me see.", "Let me see.", [PARIS_CALL]),
    "text after a fence": (f"```json\n{PARIS}\n```\n\nOk. ", "Ok. ", [PARIS_CALL]),
    "other JSON after": (f'{PARIS} {{"a": 1}}', '{"a": 1}', [PARIS_CALL]),
    "a tagged call after": (f"{PARIS}\n{TAGGED}", "", [PARIS_CALL, GET_CALL]),
}
TEXTS = [
    "",
    "{",
    "Hello {}",
    f"It is {PARIS}",
    '{"name": "Paris", "arguments": {}}',
    '{"name": "get_we", "arguments": {}}',
    '{"name": "get_weather"}',
    '{"name": "get_weather", "arguments": {"town": "Paris"}}',
    '{"name": "get_weather", "arguments": {"city": 3}}',
    '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "F"}}',
    '{"name": "get_weather", "arguments": "Paris"}',
    '{"name": "get_weather", "arguments": {"city": "Paris"}, "why": 1}',
    '{"name": "get_weather", "arguments": {"city": Paris}}',
    '{"arguments": {"city": 3}, "name": "get_weather"}',
    '{"city": "Paris"}',
    '{"name": "get", "name": "get"}',
    '{"name": "get", "function": "get", "arguments": {}}',
    '{"function": {"name": "put", "arguments": {}}}',
    '{"function": {"function": {"name": "get", "arguments": {}}}}',
    '{"function": {"name": "get", "arguments": {}}, "arguments": {}}',
    '{"tool_calls": []}',
    '{"tool_calls": [{"a": 1}]}',
    '{"get": {}}',
    '[{"tool_calls": [{"name": "get", "arguments": {}}]}]',
    """```a-b\n{"name": "get", "arguments": {}}\n```""",
    '{"name": "get", "arguments": {}, "parameters": {}}',
    '{"name": "get", "arguments": {},}',
    '{"type": "object", "name": "get", "arguments": {}}',
    "{}",
    "[1, 2, 3]",
    f"[{PARIS}, 1]",
    f"[{PARIS}",
    f"```json\n[{PARIS}\n```",
    f"<json>[{PARIS}</json>",
    f'{{"tool_calls": [{GET}}}',
    f"[{PARIS}, {{}}]",
    "[]",
    "```python\nprint(1)\n```",
    "```json\n[1]\n```",
    "````",
    f"<div>{PARIS}</div>",
    f"<tools>\n{PARIS[:-1]}",
    "<tools>\n</tools>",
    "<json> {}",
    "<to",
    "`get`",
]


def new_parser(format: ToolFormat = HERMES) -> BareCallParser:
    return BareCallParser(ToolCallParser(format=format, names=NAMES), format, NAMES)


def read(pieces: list[str], format: ToolFormat = HERMES) -> tuple[str, list[tuple[str, Any]]]:
    parser = new_parser(format)
    content, calls = "", []
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            if isinstance(delta, ContentDelta):
                content += delta.text
                continue
            assert isinstance(delta, ToolCallDelta)
            if delta.name is not None:
                assert delta.index == len(calls)
                assert delta.id
                calls.append((delta.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    assert not parser.is_call_cut
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


@pytest.mark.parametrize("name", CALLS)
def test_a_bare_call_is_a_call(name: str) -> None:
    text, content, calls = CALLS[name]
    assert read([text]) == (content, calls)
    assert read([*text, ""]) == (content, calls)
    for end in range(len(text)):
        assert read([text[:end], text[end:]]) == (content, calls)


@pytest.mark.parametrize("text", TEXTS)
def test_other_text_stays_text(text: str) -> None:
    assert read([text]) == (text, [])
    assert read([*text, ""]) == (text, [])


@pytest.mark.parametrize(
    ("text", "flushed"),
    [
        ("H", "H"),
        ('{"c', '{"c'),
        ('{"name": "P', '{"name": "P'),
        ('{"name": "get", "arguments": 1', '{"name": "get", "arguments": 1'),
        ("[1", "[1"),
        ("[{", ""),
        ("```py", ""),
        ("```python\np", "```python\np"),
        ("``p", "``p"),
        ("<t", ""),
        ("<th", "<th"),
        ("```json\n", ""),
        ('{"name": "get_wea', ""),
        ('{"name": "get_weather", "arguments": {"city": 3}', "all"),
    ],
)
def test_text_is_held_back_only_while_it_may_be_a_call(text: str, flushed: str) -> None:
    deltas = new_parser().feed(text, finished=False)
    content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    assert content == (text if flushed == "all" else flushed)


def test_a_call_comes_as_soon_as_it_ends() -> None:
    parser = new_parser()
    assert parser.feed(PARIS[:-1], finished=False) == []
    (delta,) = parser.feed("}", finished=False)
    assert isinstance(delta, ToolCallDelta)
    assert (delta.name, delta.arguments) == ("get_weather", PARIS_ARGUMENTS)


def test_only_text_with_a_name_is_a_call_that_was_cut() -> None:
    for end in range(1, len(PARIS)):
        (delta,) = new_parser().feed(PARIS[:end], finished=True)
        assert isinstance(delta, ContentDelta)
        assert delta.may_be_call is (end >= len('{"name"')), PARIS[:end]


def test_other_formats() -> None:
    assert read([f"[{PARIS}]"], PYTHONIC) == ("", [PARIS_CALL])
    assert read(["[get()]"], PYTHONIC) == ("", [GET_CALL])
    assert read([f"[{PARIS}]</TOOLCALL>"], NEMOTRON) == ("", [PARIS_CALL])
    named = f'{{"get_weather": {PARIS_ARGUMENTS}}}'
    for text in (named, f"[{named}]", f"[{named}]<|tools_suffix|>", f"```json\n{named}\n```"):
        assert read([text], FORMATS["apertus"]) == ("", [PARIS_CALL])
        assert read([*text, ""], FORMATS["apertus"]) == ("", [PARIS_CALL])
    for text in ('{"get_weather": {"town": "Paris"}}', '{"put": {}}', '{"get": {}, "get": {}}'):
        assert read([text], FORMATS["apertus"]) == (text, [])


LLAMA_JSON, XLAM, GRANITE = FORMATS["llama_json"], FORMATS["xlam"], FORMATS["granite"]


@pytest.mark.parametrize(
    ("format", "text", "content", "calls"),
    [
        (LLAMA_JSON, f"```json\n{GET}\n```", "", [GET_CALL]),
        (LLAMA_JSON, f"\n```\n{PARIS}\n```\nOk", "Ok", [PARIS_CALL]),
        (LLAMA_JSON, GET, "", [GET_CALL]),
        (LLAMA_JSON, f'{{"type": "function", {GET[1:]}', "", [GET_CALL]),
        (LLAMA_JSON, f'{{"type":"function",{GET[1:]}', "", [GET_CALL]),
        (LLAMA_JSON, '```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```', []),
        (LLAMA_JSON, "Hello ```", "Hello ```", []),
        (LLAMA_JSON, f"<tool_call>{GET}</tool_call>", "", [GET_CALL]),
        (GRANITE, f"<tool_call>[{PARIS}]", "", [PARIS_CALL]),
        (XLAM, f"```json\n[{PARIS}, {GET}]\n```", "", [PARIS_CALL, GET_CALL]),
        (XLAM, f"[{PARIS}]", "", [PARIS_CALL]),
    ],
)
def test_formats_whose_calls_are_bare(
    format: ToolFormat, text: str, content: str, calls: list[tuple[str, Any]]
) -> None:
    assert read([text], format) == (content, calls)
    assert read([*text, ""], format) == (content, calls)


def test_such_formats_still_stream_their_arguments() -> None:
    deltas = new_parser(LLAMA_JSON).feed('{"name": "get_weather", "parameters": {"ci', False)
    assert [d.arguments for d in deltas if isinstance(d, ToolCallDelta)] == ['{"ci']


def test_only_formats_of_messages_have_no_bare_calls() -> None:
    assert [name for name in FORMATS if not may_be_bare(FORMATS[name])] == ["harmony", "muse"]
