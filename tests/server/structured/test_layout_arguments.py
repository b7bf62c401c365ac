"""Every layout writes the arguments of a tool in its own way, whatever the tool's schema."""

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import ToolOptions
from stonechat_server.tool_formats.layout import DictLayout, TagLayout
from stonechat_server.tool_formats.select import FORMATS
from tests.models.walks import allowed_ids, allows
from tests.nightly import nightly
from tests.server.bodies import error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine
from tests.server.structured.calls import (
    COMPILER,
    VOCABULARY,
    arguments,
    call_grammar,
    calls,
    enforced,
    is_allowed,
)

ALL_LAYOUTS = ("hermes", "qwen_coder", "pythonic", "gemma4", "minimax_m3")
TEXT: dict[str, Any] = {"type": "string"}
MARK = "]<]minimax[>["


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize("num_keys", [3, 6])
def test_a_recursive_schema_has_one_rule_per_definition(num_keys: int) -> None:
    node = record(**{f"c{i}": {"$ref": "#/$defs/N"} for i in range(num_keys)})
    tool, left_out = enforced({**record(n={"$ref": "#/$defs/N"}), "$defs": {"N": node}})
    assert left_out == []
    assert len(call_grammar(tool, "minimax_m3").source) < 2000
    inner = f"{MARK}<c1>{MARK}<c0>{MARK}</c0>{MARK}</c1>"
    text = element_call(f"{MARK}<n>{inner}{MARK}</n>")
    assert is_allowed(tool, "minimax_m3", text)
    assert arguments(tool, "minimax_m3", text) == {"n": {"c1": {"c0": {}}}}


def element_call(elements: str) -> str:
    """A call of `f` in the layout of MiniMax M3."""
    body = f'{MARK}<invoke name="f">{elements}{MARK}</invoke>'
    return f"{MARK}<tool_call>\n{body}\n{MARK}</tool_call>"


@pytest.mark.parametrize(
    "value",
    [
        {"type": "string", "minLength": 1.0, "maxLength": 5.0},
        {"type": "array", "items": {"type": "null"}, "minItems": 1.0, "maxItems": 2.0},
        {"type": "array", "items": False},
        {"type": "array", "items": TEXT, "maxItems": 0},
        {"type": "array", "maxItems": 0},
    ],
    ids=str,
)
def test_odd_but_legal_bounds_are_enforced(value: Any) -> None:
    for layout in ALL_LAYOUTS:
        schema = {**record(a=value), "required": ["a"]}
        tool, left_out = enforced(schema, format=FORMATS[layout])
        assert left_out == []
        found = calls(tool, layout, count=6)
        assert found
        for call in found:
            jsonschema.validate(call, schema)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "array", "items": [TEXT]},
        {"type": "array", "items": [TEXT], "maxItems": 0},
        {"type": "array", "items": False, "minItems": 1},
        {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 1},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "object", "minProperties": 1, "maxProperties": 0},
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#/properties/a"}, TEXT]},
        {"anyOf": [{"$ref": "#/properties/a"}, {"type": "integer"}]},
        {"required": [["a"]], "allOf": [{"required": ["b"]}]},
    ],
    ids=str,
)
def test_what_a_layout_cannot_write_is_left_out(value: Any) -> None:
    for layout in ALL_LAYOUTS:
        schema = {**record(a=value, b=TEXT), "required": ["a"]}
        tool, _ = enforced(schema, format=FORMATS[layout])
        COMPILER.compile(call_grammar(tool, layout))


@pytest.mark.parametrize("keys", [["to", "cc", "body"], ["body", "cc", "to"], ["body", "to"]])
@pytest.mark.parametrize(("layout", "quote"), [("gemma4", '<|"|>'), ("function_gemma", "<escape>")])
def test_bare_keys_may_be_sorted(keys: list[str], layout: str, quote: str) -> None:
    schema = {**record(to=TEXT, cc=TEXT, body=TEXT), "required": ["to", "body"]}
    tool, _ = enforced(schema)
    format = FORMATS[layout]
    inner = ",".join(f"{key}:{quote}x{quote}" for key in keys)
    assert isinstance(format.layout, DictLayout)
    end = format.layout.after_arguments
    text = f"{format.trigger}call:f{{{inner}}}{end}"
    assert is_allowed(tool, layout, text)
    assert arguments(tool, layout, text) == dict.fromkeys(keys, "x")
    without_to = f"{format.trigger}call:f{{body:{quote}x{quote}}}{end}"
    assert not is_allowed(tool, layout, without_to)


@pytest.mark.parametrize("gap", ["", "\n", "  "])
@pytest.mark.parametrize(
    ("layout", "call"),
    [
        ("gemma4", "<|tool_call>call:f{}<tool_call|>"),
        ("function_gemma", "<start_function_call>call:f{}<end_function_call>"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}"),
        ("internlm2", '<|action_start|><|plugin|>{"name": "f", "arguments": {}}<|action_end|>'),
        ("functionary", "<function=f>{}</function>"),
    ],
)
def test_space_may_stand_between_calls(layout: str, call: str, gap: str) -> None:
    tool, _ = enforced(None)
    options = ToolOptions(offered=(tool,), callable=(tool,), is_required=True, is_parallel=True)
    grammar = ToolGrammar(options, FORMATS[layout], LarkWriter({})).build()
    constraint = COMPILER.compile(grammar).new_constraint()
    for token_id in VOCABULARY.encode(f"{call}{gap}{call}"):
        assert allows(constraint, token_id)
        constraint.accept(token_id)
    assert not VOCABULARY.eos_token_ids.isdisjoint(allowed_ids(constraint))


@pytest.mark.parametrize("schema", [{"type": "object"}, {**record(), "additionalProperties": True}])
def test_an_open_record_may_be_empty(schema: Any) -> None:
    tool, _ = enforced(schema)
    assert is_allowed(tool, "minimax_m3", element_call(""))


def tag_call(**texts: str) -> str:
    """A call of `f` in the layout of Qwen Coder."""
    pairs = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in texts.items())
    return f"<tool_call>\n<function=f>\n{pairs}</function>\n</tool_call>"


AB = record(a=TEXT, b=TEXT)
EITHER = [{"required": ["a"]}, {"required": ["b"]}]
PARTS = [{"properties": {"a": {"minLength": 2}}}, {"properties": {"b": {"pattern": "x"}}}]
MANY = record(a=TEXT, **{f"k{i}": TEXT for i in range(20)})


@pytest.mark.parametrize(
    ("schema", "may_be_empty"),
    [
        ({**MANY, "minProperties": 1}, False),
        ({**AB, "allOf": [{"required": ["a"]}]}, False),
        ({**AB, "allOf": [{"anyOf": EITHER}]}, False),
        ({**AB, "allOf": [{"required": ["a"]}, {"anyOf": EITHER}]}, False),
        ({**AB, "properties": {**AB["properties"], "<c>": TEXT}}, True),
        ({**AB, "oneOf": PARTS}, True),
    ],
    ids=["any of many", "allOf", "allOf anyOf", "both", "odd key", "oneOf"],
)
def test_tags_are_kept(schema: Any, may_be_empty: bool) -> None:
    tool, _ = enforced(schema)
    assert is_allowed(tool, "qwen_coder", tag_call(a="x y"))
    assert is_allowed(tool, "qwen_coder", tag_call()) is may_be_empty
    elements = f"{MARK}<a>x y{MARK}</a>"
    assert is_allowed(tool, "minimax_m3", element_call(elements))
    assert is_allowed(tool, "minimax_m3", element_call("")) is may_be_empty
    assert is_allowed(tool, "pythonic", '[f(a="x y")]')
    assert is_allowed(tool, "pythonic", "[f()]") is may_be_empty
    assert is_allowed(tool, "gemma4", '<|tool_call>call:f{a:<|"|>x<|"|>}<tool_call|>')
    assert is_allowed(tool, "gemma4", "<|tool_call>call:f{}<tool_call|>") is may_be_empty


BOOLEAN, NULL = {"type": "boolean"}, {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "word", "value"),
    [
        (BOOLEAN, "True", True),
        (BOOLEAN, "false", False),
        ({"anyOf": [BOOLEAN, NULL], "default": None}, "False", False),
        ({"type": ["boolean", "null"]}, "None", None),
        ({"anyOf": [{"type": "integer"}, NULL]}, "None", None),
        ({"type": "integer"}, "True", ...),
        (TEXT, "True", "True"),
    ],
)
def test_words_of_python_between_tags(schema: Any, word: str, value: object) -> None:
    """Templates of Qwen3-Coder and others write such values so, and models do as well."""
    tool, _ = enforced({**record(a=schema), "required": ["a"]})
    assert is_allowed(tool, "qwen_coder", tag_call(a=word)) is (value is not ...)
    if value is not ...:
        assert arguments(tool, "qwen_coder", tag_call(a=word)) == {"a": value}


def test_one_of_two_keys_is_kept_in_tags_and_enforced_in_json() -> None:
    schema = {**AB, "oneOf": EITHER}
    tool, left_out = enforced(schema, format=FORMATS["qwen_coder"])
    assert left_out == [".oneOf"]
    assert is_allowed(tool, "qwen_coder", tag_call(a="x"))
    assert not is_allowed(tool, "qwen_coder", tag_call())
    tool, left_out = enforced(schema, format=FORMATS["hermes"])
    assert left_out == []
    both = '<tool_call>\n{"name": "f", "arguments": {"a": "x", "b": "y"}}\n</tool_call>'
    assert not is_allowed(tool, "hermes", both)
    assert is_allowed(tool, "hermes", both.replace(', "b": "y"', ""))


def test_a_key_that_no_tag_can_have_is_written_as_json() -> None:
    tool, _ = enforced(record(a=TEXT, **{"<c>": TEXT}))
    text = '<tool_call>\n<function=f>\n{"<c>": "x"}\n</function>\n</tool_call>'
    assert is_allowed(tool, "qwen_coder", text)
    assert arguments(tool, "qwen_coder", text) == {"<c>": "x"}


@pytest.mark.parametrize(
    ("value", "good", "bad"),
    [
        ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2}$"}, "AB-12", "AB-1"),
        ({"type": "string", "pattern": "^(?:a/b|c d)$"}, "a/b", "a"),
        ({"type": "string", "format": "date"}, "2024-02-28", "2024-02-30"),
        ({"type": "string", "format": "date-time"}, "2024-12-31T09:00:00Z", "2024-12-31"),
        ({"type": "string", "format": "email"}, "a.b@c.org", "a@"),
        ({"type": "string", "format": "uri"}, "https://a.org/b?c=d#e", "a b"),
        ({"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}, "2024-01-31", "x"),
        ({"type": ["string", "null"], "enum": ["a b", "c", None]}, "a b", "d"),
        ({"type": ["string", "integer"]}, "a b", None),
        ({"anyOf": [TEXT, {"type": "number"}, {"type": "null"}]}, "a b\nc", None),
        ({"type": ["string", "null"], "maxLength": 3}, "abc", "abcd"),
        ({"anyOf": [{"type": "string", "minLength": 2}, {"type": "array"}]}, "ab", "a"),
        ({"oneOf": [TEXT, {"type": "array", "items": TEXT}]}, "a b", None),
        ({"enum": ["a b", 1, None, True]}, "a b", "b"),
        ({"anyOf": [{"type": "string", "enum": ["a"]}, {"const": "b c"}]}, "b c", "c"),
        ({"anyOf": [{"enum": ["a"]}, {"type": "string", "const": "b"}]}, "a", "c"),
        ({"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]}, "b", "c"),
        ({"type": ["string", "integer"]}, "2 days", None),
        ({"type": ["string", "number"]}, "2024-01-31", None),
        ({"anyOf": [TEXT, {"type": "boolean"}]}, "-5 degrees", None),
        ({"anyOf": [TEXT, {"type": "integer", "minimum": 3}]}, "a", "2 days"),
        ({}, "true story", None),
        ({}, "10:30", None),
        (True, "text", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["qwen_coder", "glm", *nightly("minimax", "seed")])
def test_text_stands_raw_where_json_may_stand_too(
    value: Any, good: str, bad: str | None, layout: str
) -> None:
    schema = {**record(a=value), "required": ["a"]}
    tool, left_out = enforced(schema, format=FORMATS[layout])
    assert left_out == []
    text = written(layout, good)
    assert is_allowed(tool, layout, text)
    assert arguments(tool, layout, text) == {"a": good}
    assert is_allowed(tool, layout, written(layout, json.dumps(good)))
    assert bad is None or not is_allowed(tool, layout, written(layout, bad))
    for call in calls(tool, layout):
        jsonschema.validate(call, schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("layout", ["gemma4", "function_gemma"])
@pytest.mark.parametrize(
    "key", ["$filter", "user.name", "X-Trace", "1st", "naïve", "my key", "@a/b"]
)
def test_declared_keys_stand_bare(key: str, layout: str) -> None:
    schema = {**record(**{key: {"type": "integer"}, "o": record(**{key: TEXT})}), "required": [key]}
    tool, left_out = enforced(schema, format=FORMATS[layout])
    assert left_out == []
    parts = FORMATS[layout].layout
    assert isinstance(parts, DictLayout)
    pairs = f"{{{key}:1,o:{{{key}:{parts.quote}x{parts.quote}}}}}"
    call = f"{parts.before_name}f{parts.after_name}{pairs}{parts.after_arguments}"
    text = f"{FORMATS[layout].trigger}{parts.opening}{call}{parts.closing}"
    assert is_allowed(tool, layout, text)
    assert arguments(tool, layout, text) == {key: 1, "o": {key: "x"}}


@pytest.mark.parametrize("layout", ["qwen_coder", "deepseek_v32", "gemma4", "minimax_m3"])
def test_a_list_of_one_schema_is_that_schema(layout: str) -> None:
    """As pydantic writes a model or an enum that has a description of its own."""
    colour = {"C": {"type": "string", "enum": ["red", "blue"]}}
    value = {"allOf": [{"$ref": "#/$defs/C"}], "description": "The colour.", "default": "red"}
    plain = {**record(a=colour["C"]), "required": ["a"]}
    wrapped = {**record(a=value), "required": ["a"], "$defs": colour}
    grammars = [call_grammar(enforced(s)[0], layout).source for s in (plain, wrapped)]
    texts = [calls(enforced(s)[0], layout, count=6) for s in (plain, wrapped)]
    assert {call["a"] for found in texts for call in found} <= {"red", "blue"}
    if layout in ("qwen_coder", "deepseek_v32"):
        assert grammars[0] == grammars[1]


@pytest.mark.parametrize(
    ("value", "good", "bad"),
    [
        ({"type": "string", "format": "date"}, "2024-02-28", "2024-02-30"),
        ({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{2}$"}, "AB-12", "AB-1"),
        ({"type": ["string", "null"], "maxLength": 3}, "abc", "abcd"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["gemma4", "function_gemma"])
def test_strings_with_a_form_stand_in_the_quotes_of_the_layout(
    value: Any, good: str, bad: str, layout: str
) -> None:
    schema = {**record(a=value), "required": ["a"]}
    tool, left_out = enforced(schema, format=FORMATS[layout])
    assert left_out == []
    parts = FORMATS[layout].layout
    assert isinstance(parts, DictLayout)
    for text, expected in ((good, True), (bad, False)):
        pair = f"{{a:{parts.quote}{text}{parts.quote}}}"
        call = f"{parts.before_name}f{parts.after_name}{pair}{parts.after_arguments}"
        whole = f"{FORMATS[layout].trigger}{parts.opening}{call}{parts.closing}"
        assert is_allowed(tool, layout, whole) is expected, whole
    assert is_allowed(tool, layout, whole.replace(pair, f'{{a:"{good}"}}'))
    for found in calls(tool, layout):
        jsonschema.validate(found, schema, format_checker=jsonschema.FormatChecker())


def written(layout: str, value: str) -> str:
    """A call of `f` with the value of `a` in a layout with tags."""
    format = FORMATS[layout]
    parts = format.layout
    assert isinstance(parts, TagLayout)
    argument = f"{parts.before_key}a{parts.after_key}{value}{parts.after_value}"
    call = f"{parts.before_name}f{parts.after_name}{argument}{parts.after_arguments}"
    return f"{format.trigger}{parts.opening}{call}{parts.closing}"


def many_tools(**fields: Any) -> list[dict[str, Any]]:
    keys = [f"a_rather_long_parameter_name_{i}" for i in range(21)]
    schema = {**record(**{key: {"type": "integer"} for key in keys}), "additionalProperties": False}
    small = record(a=TEXT)
    functions = [{"name": f"f{i}", "parameters": schema, **fields} for i in range(127)]
    functions.append({"name": "small", "parameters": small})
    return [{"type": "function", "function": function} for function in functions]


def test_the_largest_schemas_of_too_many_tools_are_left_out(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.model = replace(engine.model, max_model_len=1_000_000)
    client: TestClient = new_client(tool_format="gemma4")
    response = post(client, tools=many_tools())
    assert response.status_code == 200, response.json()
    assert response.headers["x-unenforced-schema"].startswith("tools[0].function.parameters,")
    response = post(client, tools=many_tools(strict=True))
    assert response.status_code == 400
    assert error_of(response)["param"] == "tools"


CHOSEN: list[tuple[Any, dict[str, Any], list[str]]] = [
    ({"type": "string", "pattern": "^[a-c]{2}$"}, {"ab": "ab", '"ab"': "ab"}, ["abc", '"x"']),
    ({"type": "string", "format": "date"}, {"2024-02-28": "2024-02-28"}, ["2024-02-30", "x"]),
    ({"type": ["string", "integer"]}, {"x": "x", "5": 5, '"5"': "5"}, ["[1]"]),
    ({"enum": ["a", 1, None]}, {"a": "a", "1": 1, "null": None}, ["b", "2", ""]),
    ({"enum": ["a", f"b{MARK}"]}, {"a": "a"}, ["b", "c"]),
    ({"type": "string", "enum": ["a", "abc"], "maxLength": 1}, {'"a"': "a"}, ["abc", '"abc"']),
    ({"allOf": [{"type": "integer"}, {"maximum": 4}]}, {"4": 4}, ["5", "x", ""]),
    ({"$ref": "#/$defs/Small", "minimum": 3}, {"3": 3}, ["2", "9", "x"]),
    ({"anyOf": [{"$ref": "#/$defs/Small"}, {"type": "null"}]}, {"3": 3, "null": None}, ["9", "x"]),
    (
        {"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^zz$"}]},
        {'"x"': "x", '"zz"': "zz"},
        ['"xy"', "xy"],
    ),
    (
        {"anyOf": [{**record(k=TEXT), "required": ["k"]}, {"type": "string", "maxLength": 2}]},
        {f"{MARK}<k>x{MARK}</k>": {"k": "x"}, "ab": "ab"},
        ["abc", f"{MARK}<l>x{MARK}</l>"],
    ),
    ({"anyOf": [record(k=TEXT), {"pattern": "^q$", "type": "string"}]}, {"{}": {}, "q": "q"}, [""]),
    ({"anyOf": [{"type": "integer"}, record(k=TEXT)]}, {"": {}, "1": 1}, ["x"]),
    (
        {"anyOf": [{"type": "array", "items": TEXT, "minItems": 1}, record(k=TEXT)]},
        {"": {}, f"{MARK}<item>x{MARK}</item>": ["x"]},
        ["x"],
    ),
    (
        {"type": "array", "items": {"pattern": "^a+$"}},
        {f'{MARK}<item>"a"{MARK}</item>{MARK}<item>1{MARK}</item>': ["a", 1], "": []},
        [f'{MARK}<item>"b"{MARK}</item>'],
    ),
]


@pytest.mark.parametrize(("value", "good", "bad"), CHOSEN, ids=str)
def test_elements_hold_what_the_schema_allows_and_no_other_text(
    value: Any, good: dict[str, Any], bad: list[str]
) -> None:
    small = {"type": "integer", "maximum": 5}
    schema = {**record(a=value), "required": ["a"], "$defs": {"Small": small}}
    tool, left_out = enforced(schema, format=FORMATS["minimax_m3"])
    assert left_out == []
    for text, expected in good.items():
        call = element_call(f"{MARK}<a>{text}{MARK}</a>")
        assert is_allowed(tool, "minimax_m3", call), text
        assert arguments(tool, "minimax_m3", call) == {"a": expected}
    for text in bad:
        assert not is_allowed(tool, "minimax_m3", element_call(f"{MARK}<a>{text}{MARK}</a>")), text
    for found in calls(tool, "minimax_m3", count=6):
        jsonschema.validate(found, schema, format_checker=jsonschema.FormatChecker())


ODD = {
    "listed values of other types": {"type": "integer", "enum": [1, "x", 2, None]},
    "a listed value of one type": {"type": ["string", "null"], "enum": [1, "x", None]},
    "listed texts with line breaks": {"enum": [" a ", "b\n", "\nc"]},
    "a bound beside options": {"minLength": 1, "anyOf": [TEXT, {"type": "null"}]},
    "a bound beside a reference": {"$ref": "#/$defs/Small", "minimum": 3},
    "untyped": {"pattern": "^b$", "maximum": 3},
    "an option with a pattern": {
        "anyOf": [{"type": "string", "pattern": "^[0-9]$"}, record(k=TEXT)]
    },
    "joined objects": {
        "allOf": [record(a={"type": "null"}), {**record(b=TEXT), "required": ["b"]}]
    },
}


@pytest.mark.parametrize("name", ODD)
def test_odd_values_validate_in_every_layout(name: str) -> None:
    for layout in (*ALL_LAYOUTS, "glm", "minicpm5"):
        small = {"type": "integer", "maximum": 5}
        schema = {**record(a=ODD[name]), "required": ["a"], "$defs": {"Small": small}}
        tool, left_out = enforced(schema, format=FORMATS[layout])
        assert left_out == []
        found = calls(tool, layout, count=6)
        for call in found:
            jsonschema.validate(call, schema)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^\w\d$", ["a1", "_0"], ["é1", "a\u0661", "a"]),
        (r"^[\w.\-]+$", ["a-b.c_1"], ["a\u05bf", "a b", "é"]),
        (r"^[^\d]\D$", ["a\u0661", "éx"], ["1x", "x1"]),
        (r"^\W$", ["é", "-"], ["a", "_"]),
    ],
)
def test_classes_of_a_raw_string_are_those_of_json(
    pattern: str, good: list[str], bad: list[str]
) -> None:
    schema = {**record(a={"type": "string", "pattern": pattern}), "required": ["a"]}
    tool, left_out = enforced(schema, format=FORMATS["qwen_coder"])
    assert left_out == []
    for text in (*good, *bad):
        for value in (text, json.dumps(text, ensure_ascii=False)):
            is_good = is_allowed(tool, "qwen_coder", written("qwen_coder", value))
            assert is_good is (text in good), value
