"""Real output of each format is read as the same content and calls, wherever it is cut."""

import json

import pytest

from stonechat_server.parsers.deltas import ContentDelta, ToolCallDelta
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.tool_formats.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from stonechat_server.tool_formats.glm import GLM
from stonechat_server.tool_formats.hermes import GENERIC, HERMES
from stonechat_server.tool_formats.invoke import MINIMAX
from stonechat_server.tool_formats.kimi import KIMI
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.mistral import MISTRAL, MISTRAL_LIST
from stonechat_server.tool_formats.qwen_coder import QWEN_CODER
from stonechat_server.tool_formats.select import FORMATS
from stonechat_server.tool_formats.tool_list import GRANITE, LFM2, NEMOTRON, PHI
from stonechat_server.tool_formats.whole_answer import LLAMA_JSON, PYTHONIC

NAMES = ToolNames(functions=("get_weather", "add", "now"), custom=("sql", "note"))
PARIS = ("get_weather", {"city": "Paris <tool_call> }"})
SUM = ("add", {"a": 1, "b": [2, {"c": '}\\"'}]})
PARIS_JSON, SUM_JSON = json.dumps(PARIS[1]), json.dumps(SUM[1])

Case = tuple[ToolFormat, str, str, list[tuple[str, object]]]

CASES: dict[str, Case] = {
    "hermes": (
        HERMES,
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS_JSON}}}\n</tool_call>',
        "",
        [PARIS],
    ),
    "hermes, several after text": (
        HERMES,
        "Let me see <tool.\n\n"
        f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS_JSON}}}\n</tool_call>\n'
        f'<tool_call>\n{{"name": "add", "arguments": {SUM_JSON}}}\n</tool_call>',
        "Let me see <tool.",
        [PARIS, SUM],
    ),
    "hermes, compact": (
        HERMES,
        '<tool_call>{"name":"now","arguments":{}}</tool_call>\n\n',
        "",
        [("now", {})],
    ),
    "hermes, arguments first": (
        HERMES,
        f'<tool_call>\n{{"arguments": {SUM_JSON}, "name": "add"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "",
        [SUM, ("now", {})],
    ),
    "hermes, as the template of Hermes 2 Pro writes it": (
        HERMES,
        f'\n<tool_call>\n{{ "arguments": {SUM_JSON}, "name": "add"}}\n</tool_call> '
        '\n<tool_call>\n{ "arguments": {}, "name": "now"}\n</tool_call> ',
        "",
        [SUM, ("now", {})],
    ),
    "hermes, further keys": (
        HERMES,
        f'<tool_call>\n{{"name": "add", "arguments": {SUM_JSON}, "id": "}}1"}}\n</tool_call>',
        "",
        [SUM],
    ),
    "hermes, tag within text": (
        HERMES,
        "The tag <tool_call> opens a call.",
        "The tag <tool_call> opens a call.",
        [],
    ),
    "hermes, unknown name": (
        HERMES,
        '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
        [],
    ),
    "hermes, cut off": (
        HERMES,
        'Yes.\n<tool_call>\n{"name": "ad',
        'Yes.\n<tool_call>\n{"name": "ad',
        [],
    ),
    "generic": (
        GENERIC,
        f'Sure.\n<tool_call>\n{{"name": "add", "arguments": {SUM_JSON}}}\n</tool_call>\n',
        "Sure.",
        [SUM],
    ),
    "llama": (
        LLAMA_JSON,
        f'{{"name": "add", "parameters": {SUM_JSON}}}',
        "",
        [SUM],
    ),
    "llama, two": (
        LLAMA_JSON,
        f'{{"name": "add", "parameters": {SUM_JSON}}}; {{"name": "now", "parameters": {{}}}}',
        "",
        [SUM, ("now", {})],
    ),
    "llama, with a type": (
        LLAMA_JSON,
        f'{{"type": "function", "name": "add", "parameters": {SUM_JSON}}}',
        "",
        [SUM],
    ),
    "llama, an answer in JSON": (
        LLAMA_JSON,
        '{"name": "Ada", "born": 1815}',
        '{"name": "Ada", "born": 1815}',
        [],
    ),
    "llama, text": (LLAMA_JSON, " It is {sunny}. ", " It is {sunny}. ", []),
    "pythonic": (
        PYTHONIC,
        "[get_weather(city='Paris <tool_call> }'), add(a=1, b=[2, {\"c\": '}\\\\\"'}])]",
        "",
        [PARIS, SUM],
    ),
    "pythonic, literals": (
        PYTHONIC,
        '[add(a=True, b=null, c="x, )"), now()]',
        "",
        [("add", {"a": True, "b": None, "c": "x, )"}), ("now", {})],
    ),
    "pythonic, unpacked": (PYTHONIC, f"[add(**{SUM_JSON}), add(**{{}})]", "", [SUM, ("add", {})]),
    "pythonic, a list": (PYTHONIC, "[1, 2] is a list", "[1, 2] is a list", []),
    "mistral list": (
        MISTRAL_LIST,
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {PARIS_JSON}}}, '
        f'{{"name": "add", "arguments": {SUM_JSON}}}]',
        "",
        [PARIS, SUM],
    ),
    "mistral list with ids": (
        MISTRAL_LIST,
        f'[TOOL_CALLS][{{"name": "add", "arguments": {SUM_JSON}, "id": "abcdefghi"}}, '
        '{"id": "abcdefghj", "name": "now", "arguments": {}}]',
        "",
        [SUM, ("now", {})],
    ),
    "mistral": (
        MISTRAL,
        f"I look.[TOOL_CALLS]get_weather[ARGS]{PARIS_JSON}[TOOL_CALLS]add[ARGS]{SUM_JSON}",
        "I look.",
        [PARIS, SUM],
    ),
    "deepseek v3": (
        DEEPSEEK_V3,
        "<\uff5ctool▁calls▁begin\uff5c><\uff5ctool▁call▁begin\uff5c>function"
        f"<\uff5ctool▁sep\uff5c>get_weather\n```json\n{PARIS_JSON}\n```<\uff5ctool▁call▁end\uff5c>\n"
        f"<\uff5ctool▁call▁begin\uff5c>function<\uff5ctool▁sep\uff5c>add\n```json\n{SUM_JSON}\n```"
        "<\uff5ctool▁call▁end\uff5c><\uff5ctool▁calls▁end\uff5c>",
        "",
        [PARIS, SUM],
    ),
    "deepseek v3.1": (
        DEEPSEEK_V31,
        "One moment.<\uff5ctool▁calls▁begin\uff5c><\uff5ctool▁call▁begin\uff5c>"
        "add<\uff5ctool▁sep\uff5c>"
        f"{SUM_JSON}<\uff5ctool▁call▁end\uff5c><\uff5ctool▁call▁begin\uff5c>now<\uff5ctool▁sep\uff5c>{{}}"
        "<\uff5ctool▁call▁end\uff5c><\uff5ctool▁calls▁end\uff5c>",
        "One moment.",
        [SUM, ("now", {})],
    ),
    "granite": (
        GRANITE,
        f'<|tool_call|>[{{"name": "add", "arguments": {SUM_JSON}}}]',
        "",
        [SUM],
    ),
    "phi": (
        PHI,
        f'<|tool_call|>[{{"name": "add", "arguments": {SUM_JSON}}}, '
        '{"name": "now", "arguments": {}}]<|/tool_call|>',
        "",
        [SUM, ("now", {})],
    ),
    "lfm2": (
        LFM2,
        "<|tool_call_start|>[add(a=1, b=[2, {'c': '}\\\\\"'}]), now()]<|tool_call_end|>Wait.",
        "Wait.",
        [SUM, ("now", {})],
    ),
    "qwen coder, as JSON": (
        QWEN_CODER,
        f"One.\n<tool_call>\n<function=add>\n{SUM_JSON}\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "One.",
        [SUM, ("now", {})],
    ),
    "qwen coder, without line breaks": (
        QWEN_CODER,
        "<tool_call><function=add><parameter=a>1</parameter><parameter=b>"
        '[2, {"c": "}\\\\\\""}]</parameter></function></tool_call>',
        "",
        [SUM],
    ),
    "qwen coder, tags in a value": (
        QWEN_CODER,
        "<tool_call>\n<function=add>\n<parameter=a>\n"
        '["</parameter>", "\\n</function>"]\n</parameter>\n</function>\n</tool_call>',
        "",
        [("add", {"a": ["</parameter>", "\n</function>"]})],
    ),
    "qwen coder, tag within text": (
        QWEN_CODER,
        "The tags <tool_call>\n<function=rm> open a call.",
        "The tags <tool_call>\n<function=rm> open a call.",
        [],
    ),
    "glm": (
        GLM,
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris <tool_call> }"
        "</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        "",
        [PARIS, ("now", {})],
    ),
    "glm, without line breaks": (
        GLM,
        "Ok<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key><arg_value>"
        "[2]</arg_value></tool_call><tool_call>now</tool_call>",
        "Ok",
        [("add", {"a": 1, "b": [2]}), ("now", {})],
    ),
    "glm, tag within text": (
        GLM,
        "The tag <tool_call> opens a call.",
        "The tag <tool_call> opens a call.",
        [],
    ),
    "custom": (
        HERMES,
        'Now:\n<custom_tool_call name="sql">\nSELECT "a"\n  FROM t\n</custom_tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        "Now:",
        [("sql", 'SELECT "a"\n  FROM t'), ("now", {})],
    ),
    "custom, tags inside": (
        LLAMA_JSON,
        '<custom_tool_call name="note">\n\n</custom_tool_call> is a tag\n</custom_tool_call>\n'
        '<custom_tool_call name="sql">\n\n</custom_tool_call>',
        "",
        [("note", "\n</custom_tool_call> is a tag"), ("sql", "")],
    ),
    "qwen coder, without the opening tag": (
        QWEN_CODER,
        "I will check.\n<function=get_weather>\n<parameter=city>\nParis <tool_call> }\n"
        "</parameter>\n</function>\n</tool_call>",
        "I will check.",
        [PARIS],
    ),
    "qwen coder, without tags around the functions": (
        QWEN_CODER,
        "<function=now>\n</function>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        '<parameter=b>\n[2, {"c": "}\\\\\\""}]\n</parameter>\n</function>\nText.',
        "Text.",
        [("now", {}), SUM],
    ),
    "qwen coder, two opening tags": (
        QWEN_CODER,
        "One <tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "One",
        [("now", {})],
    ),
    "qwen coder, an opening tag in place of the closing one": (
        QWEN_CODER,
        "<tool_call>\n<function=now>\n</function>\n<tool_call>",
        "",
        [("now", {})],
    ),
    "qwen coder, without the closing tag of a call": (
        QWEN_CODER,
        f"<tool_call>\n<function=add>\n{SUM_JSON}\n</function>\n"
        "<tool_call>\n<function=now>\n</tool_call>\n<tool_call>\n<function=now></function>",
        "",
        [SUM, ("now", {}), ("now", {})],
    ),
    "qwen coder, an unknown function": (
        QWEN_CODER,
        "The tag <function=now_and_then> or <function=",
        "The tag <function=now_and_then> or <function=",
        [],
    ),
    "minimax, without the opening tag": (
        MINIMAX,
        'Ok\n<invoke name="get_weather">\n<parameter name="city">"Paris <tool_call> }"'
        "</parameter>\n</invoke>\n</minimax:tool_call>",
        "Ok",
        [PARIS],
    ),
    "kimi, without the token of the section": (
        KIMI,
        "Ok<|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "Ok",
        [("now", {})],
    ),
    "hermes, without closing tags": (
        HERMES,
        f'<tool_call>\n{{"name": "add", "arguments": {SUM_JSON}}}\n'
        '<tool_call><tool_call>\n{"name": "now", "arguments": {}}',
        "",
        [SUM, ("now", {})],
    ),
    "hermes, without the opening tag": (
        HERMES,
        f'I add.\n{{"name": "add", "arguments": {SUM_JSON}}}\n</tool_call>\n'
        '{"name":"now","arguments":{}}</tool_call>\nDone.',
        "I add.Done.",
        [SUM, ("now", {})],
    ),
    "hermes, JSON within text": (
        HERMES,
        'Like {"name": "now", "arguments": {}} or\n{"name": "now", "arguments": {}}\n'
        '{"name": "now", "arguments": 1}</tool_call>, {"name": "no',
        'Like {"name": "now", "arguments": {}} or\n{"name": "now", "arguments": {}}\n'
        '{"name": "now", "arguments": 1}</tool_call>, {"name": "no',
        [],
    ),
    "nemotron, without the closing tag": (
        NEMOTRON,
        '<TOOLCALL>[{"name": "now", "arguments": {}}] Wait.',
        "Wait.",
        [("now", {})],
    ),
    "lfm2, without the closing token": (
        LFM2,
        "<|tool_call_start|>[now()]Wait.",
        "Wait.",
        [("now", {})],
    ),
    "custom, not one": (
        HERMES,
        'x <custom_tool_call name="rm">\nx',
        'x <custom_tool_call name="rm">\nx',
        [],
    ),
}


def read(format: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    parser = ToolCallParser(format=format, names=NAMES)
    content, calls, ids = "", [], []
    for position, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=position == len(pieces) - 1):
            if isinstance(delta, ContentDelta):
                content += delta.text
            else:
                assert isinstance(delta, ToolCallDelta)
                if delta.index == len(calls):
                    assert delta.id
                    assert delta.name
                    calls.append([delta.name, "", delta.type])
                    ids.append(delta.id)
                else:
                    assert delta.index == len(calls) - 1
                    assert delta.id is None
                    assert delta.name is None
                calls[-1][1] += delta.arguments
    assert len(set(ids)) == len(ids)
    parsed = [(n, text if kind == "custom" else json.loads(text)) for n, text, kind in calls]
    return content, parsed


@pytest.mark.parametrize("name", CASES)
def test_every_split(name: str) -> None:
    format, text, content, calls = CASES[name]
    assert read(format, [text]) == (content, calls)
    assert read(format, [*text, ""]) == (content, calls)
    for first in range(len(text) + 1):
        assert read(format, [text[:first], text[first:]]) == (content, calls), text[:first]


@pytest.mark.parametrize("format", [HERMES, LLAMA_JSON, MISTRAL, DEEPSEEK_V31])
def test_arguments_stream_as_they_come(format: ToolFormat) -> None:
    layout = format.layout
    assert not isinstance(layout, type(PYTHONIC.layout))
    head = format.trigger + layout.opening + layout.before_name + "add" + layout.after_name
    parser = ToolCallParser(format=format, names=NAMES)
    (start,) = parser.feed(head, finished=False)
    assert isinstance(start, ToolCallDelta)
    assert (start.name, start.arguments) == ("add", "")
    assert [parser.feed(c, False) for c in '{"a'] == [
        [ToolCallDelta(index=0, arguments=c)] for c in '{"a'
    ]


def test_a_call_cut_off_in_its_arguments_keeps_what_came() -> None:
    parser = ToolCallParser(format=HERMES, names=NAMES)
    deltas = parser.feed('<tool_call>\n{"name": "add", "arguments": {"a": "x', finished=True)
    (call,) = deltas
    assert isinstance(call, ToolCallDelta)
    assert call.arguments == '{"a": "x'


def is_functions_only(name: str) -> bool:
    calls = CASES[name][3]
    return bool(calls) and all(isinstance(arguments, dict) for _, arguments in calls)


@pytest.mark.parametrize("name", list(filter(is_functions_only, CASES)))
def test_a_call_is_cut_until_its_arguments_end(name: str) -> None:
    format, text, _, calls = CASES[name]
    for end in range(len(text) + 1):
        parser = ToolCallParser(format=format, names=NAMES)
        arguments: list[str] = []
        for delta in parser.feed(text[:end], finished=True):
            if isinstance(delta, ToolCallDelta):
                arguments += [""] * (delta.name is not None)
                arguments[-1] += delta.arguments
        is_whole = not arguments or _is_json(arguments[-1], calls[len(arguments) - 1][1])
        assert parser.is_call_cut is not is_whole, text[:end]


def _is_json(text: str, expected: object) -> bool:
    try:
        return bool(json.loads(text) == expected)
    except ValueError:
        return False


def test_a_custom_call_is_cut_until_its_closing_tag() -> None:
    _, text, _, _ = CASES["custom"]
    closing = text.index("</custom_tool_call>") + len("</custom_tool_call>")
    opening = text.index("SELECT")
    for end in range(closing + 1):
        parser = ToolCallParser(format=HERMES, names=NAMES)
        parser.feed(text[:end], finished=True)
        assert parser.is_call_cut is (opening <= end < closing)


SCHEMAS = {"add": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}


@pytest.mark.parametrize("end", ["</parameter>\n", "</parameter>\n</func", "</parameter>"])
def test_closing_tags_may_be_missing_once_the_arguments_fit(end: str) -> None:
    names = ToolNames(functions=("add",), schemas=SCHEMAS)
    for body, arguments in ((f"<parameter=a>\n1\n{end}", '{"a": 1}'), ("", "")):
        parser = ToolCallParser(format=QWEN_CODER, names=names)
        (call,) = parser.feed(f"<tool_call>\n<function=add>\n{body}", finished=True)
        assert isinstance(call, ToolCallDelta)
        assert call.arguments == arguments
        assert parser.is_call_cut is (not arguments)


@pytest.mark.parametrize("name", CASES)
def test_text_that_may_be_a_call_is_told_from_content(name: str) -> None:
    """Wherever the first call is cut before its name is whole, its text is marked."""
    format, text, content, calls = CASES[name]
    if not calls or name == "hermes, without the opening tag":  # it is known at its end only
        return
    start = text.index(content) + len(content) if text.startswith(content) else 0
    for end in range(start, len(text)):
        parser = ToolCallParser(format=format, names=NAMES)
        deltas = parser.feed(text[:end], finished=True)
        if any(isinstance(delta, ToolCallDelta) for delta in deltas):
            break
        shown = [d.text for d in deltas if isinstance(d, ContentDelta) and not d.may_be_call]
        rest = text[start:end].lstrip()
        if len(rest) != 1 or "\n" in text[start:end]:
            assert "".join(shown).rstrip() == text[:start], text[:end]


def test_the_beginning_of_a_mark_in_text_is_content() -> None:
    for text in ("1 <", "if a <", "so fun"):
        for format in (HERMES, FORMATS["functools"]):
            parser = ToolCallParser(format=format, names=NAMES)
            deltas = parser.feed(text, finished=True)
            assert not any(isinstance(d, ContentDelta) and d.may_be_call for d in deltas)


def test_without_content_only_calls_are_read() -> None:
    parser = ToolCallParser(format=HERMES, names=NAMES, has_content=False)
    assert parser.feed("\n<tool_call>\n{", finished=True) == []


def test_mistral_ids_are_nine_letters_or_digits() -> None:
    ids = {MISTRAL.new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(i) == 9 and i.isalnum() and i.isascii() for i in ids)
