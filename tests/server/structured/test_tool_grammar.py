"""Any answer that a request's grammar allows is read back as calls that validate."""

import json
import random
from typing import Any

import jsonschema
import pytest

from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.types import GrammarSpec
from stonechat_server.parsers import custom_calls
from stonechat_server.parsers.deltas import ContentDelta, DeltaParser, ReasoningDelta, ToolCallDelta
from stonechat_server.parsers.harmony import HarmonyParser
from stonechat_server.parsers.muse import MuseParser
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.function_grammar import MAX_CALLS
from stonechat_server.structured.lark import LarkWriter, regex
from stonechat_server.structured.message_grammar import HarmonyGrammar, MuseGrammar
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import ToolOptions, parameters, read_tool_options
from stonechat_server.tool_formats import harmony, muse
from stonechat_server.tool_formats.hermes import GENERIC
from stonechat_server.tool_formats.layout import ToolFormat
from stonechat_server.tool_formats.select import FORMATS
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB, allowed_ids, allows, walk
from tests.nightly import nightly

SPECIALS = (
    *("[TOOL_CALLS]", "[ARGS]", "<|tool_call_begin|>", "</arg_value>"),
    *dict.fromkeys((*harmony.TOKENS, *muse.TOKENS)),
)
VOCABULARY = ByteVocabulary(SPECIALS)
COMPILER = GrammarCompiler(VOCABULARY, PADDED_VOCAB)
WRITER = LarkWriter({text: VOCABULARY.id_of(text.encode()) for text in SPECIALS})

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value"],
}
SCHEMAS: dict[str, Any] = {
    "get": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
    },
    "get_all": {
        "type": "object",
        "properties": {
            "unit": {"enum": ["c", "f"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "exact": {"type": "boolean"},
        },
        "required": ["days"],
    },
    "now": None,
    "walk": {
        "type": "object",
        "$defs": {"node": NODE},
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "required": ["root"],
    },
    "text": {
        "type": "object",
        "properties": {
            "body": {"type": "string"},
            "kind": {"enum": ["a", "b </parameter>c"]},
            "note": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]},
            "code": {"type": "string", "minLength": 2},
            "day": {"type": "string", "pattern": "^[0-9]{2}$"},
            "where": {"$ref": "#/$defs/place"},
            "any": {},
        },
        "required": ["kind", "code", "where"],
        "$defs": {"place": {"type": "string", "enum": ["null", "7"]}},
    },
    "open": {"type": "object", "maxProperties": 2},
    "odd": {
        "type": "object",
        "properties": {"a b": {"type": "null"}},
        "required": ["a b"],
        "additionalProperties": {"type": "integer"},
    },
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
LARK = 'start: "SELECT " COLUMN (", " COLUMN){0,3}\nCOLUMN: /[a-z]{1,4}/'
REGEX = "^(/[a-z]+){1,3}$"


def custom(name: str, syntax: str, definition: str) -> dict[str, Any]:
    grammar = {"syntax": syntax, "definition": definition}
    return {
        "type": "custom",
        "custom": {"name": name, "format": {"type": "grammar", "grammar": grammar}},
    }


CUSTOM: list[dict[str, Any]] = [
    custom("sql", "lark", LARK),
    custom("path", "regex", REGEX),
    {"type": "custom", "custom": {"name": "note"}},
]


def options_for(tools: list[dict[str, Any]], **fields: Any) -> ToolOptions:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    options = read_tool_options(ChatCompletionRequest.model_validate({**body, **fields}))
    assert options is not None
    return options


def grammar(options: ToolOptions, format: ToolFormat) -> GrammarSpec:
    if format is harmony.HARMONY:
        return HarmonyGrammar(options, WRITER).build()
    if format is muse.MUSE:
        return MuseGrammar(options, WRITER).build()
    return ToolGrammar(options, format, WRITER).build()


def read(options: ToolOptions, format: ToolFormat, text: str) -> tuple[str, list[tuple[str, str]]]:
    names = ToolNames(
        functions=[tool.function.name for tool in options.functions],
        custom=[tool.custom.name for tool in options.customs],
        schemas={tool.function.name: parameters(tool) for tool in options.functions},
    )
    parser: DeltaParser = ToolCallParser(format=format, names=names)
    if format is harmony.HARMONY:
        custom = ToolNames(functions=(), custom=names.custom)
        parser = HarmonyParser(names, ToolCallParser(format=GENERIC, names=custom))
    if format is muse.MUSE:
        custom = ToolNames(functions=(), custom=names.custom)

        def new_inner(is_to_tool: bool) -> ToolCallParser:
            if is_to_tool:
                return ToolCallParser(format=format, names=names)
            return ToolCallParser(format=GENERIC, names=custom)

        parser = MuseParser(names, new_inner(False), new_inner=new_inner)
    content, calls = "", []
    if format.opens_in_prompt and not text.lstrip().startswith(custom_calls.TRIGGER):
        text = format.trigger + text.lstrip()
    for delta in parser.feed(text, finished=True):
        if isinstance(delta, ReasoningDelta):
            continue
        if isinstance(delta, ContentDelta):
            content += delta.text
        else:
            assert isinstance(delta, ToolCallDelta)
            if delta.name is not None:
                calls.append((delta.name, ""))
            calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return content, calls


def check_call(name: str, arguments: str) -> None:
    if name in SCHEMAS:
        schema = SCHEMAS[name] or {"type": "object", "maxProperties": 0}
        jsonschema.validate(json.loads(arguments), schema)
    elif name == "sql":
        assert arguments.startswith("SELECT ")
        assert "\n" not in arguments
    elif name == "path":
        assert arguments.startswith("/")
    else:
        assert name == "note"


def texts(spec: GrammarSpec, count: int, limit: int = 400) -> list[str]:
    compiled = COMPILER.compile(spec)
    rng = random.Random(spec.source)
    walks = [walk(compiled.new_constraint(), VOCABULARY, rng, limit) for _ in range(count)]
    return [text.decode() for text in walks if text is not None]


def formats() -> list[Any]:
    """Return all formats. One of each layout is enough for the default run."""
    firsts = {
        (type(format.layout), format.has_recipients): name
        for name, format in reversed(FORMATS.items())
    }
    return [*firsts.values(), *nightly(*(name for name in FORMATS if name not in firsts.values()))]


@pytest.mark.parametrize("name", formats())
@pytest.mark.parametrize("is_parallel", [True, False])
@pytest.mark.parametrize(
    "tools", [TOOLS + CUSTOM, CUSTOM, *nightly(TOOLS)], ids=["all", "custom", "functions"]
)
def test_required_calls(name: str, is_parallel: bool, tools: list[dict[str, Any]]) -> None:
    format = FORMATS[name]
    options = options_for(tools, tool_choice="required", parallel_tool_calls=is_parallel)
    spec = grammar(options, format)
    answers = texts(spec, 8)
    assert answers
    num_calls = 0
    for text in answers:
        content, calls = read(options, format, text)
        assert content == "", text
        assert calls, text
        num_calls = max(num_calls, len(calls))
        for call in calls:
            check_call(*call)
    assert num_calls <= (2 * MAX_CALLS if is_parallel else 1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_tool_is_the_only_one(name: str) -> None:
    choice = {"type": "function", "function": {"name": "get_all"}}
    options = options_for(TOOLS, tool_choice=choice)
    for text in texts(grammar(options, FORMATS[name]), 6):
        _, calls = read(options, FORMATS[name], text)
        assert {tool_name for tool_name, _ in calls} == {"get_all"}


def accept_text(spec: GrammarSpec, text: str) -> list[int]:
    """Return the token ids that may follow `text`, which the grammar must allow.

    `text` has special tokens written out.
    """
    constraint = COMPILER.compile(spec).new_constraint()
    parts = [text]
    for special in SPECIALS:
        parts = [piece for part in parts for piece in _split(part, special)]
    for part in parts:
        for token_id in _token_ids(part):
            assert allows(constraint, token_id), part
            constraint.accept(token_id)
    return allowed_ids(constraint)


def _split(text: str, special: str) -> list[str]:
    pieces: list[str] = []
    for i, piece in enumerate(text.split(special)):
        pieces += [special] * (i > 0) + [piece] * bool(piece)
    return pieces


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("hermes", "Hello <tool_cal> <tool_call>"),
        ("generic", "<tool_call>"),
        ("llama_json", "{"),
        ("pythonic", "["),
        ("mistral", "Text first.[TOOL_CALLS]"),
        ("mistral_list", "[TOOL_CALLS]"),
        ("deepseek_v3", "Hm.\n<\uff5ctool\u2581calls\u2581begin\uff5c>"),
        ("qwen_coder", "Hm <tool_call>"),
        ("glm", "Hm\n<tool_call>"),
        ("deepseek_v32", "<\uff5cDSML\uff5cfunction_calls>"),
        ("minimax", "<minimax:tool_call>"),
        ("seed", "<seed:tool_call>"),
        ("kimi", "I look.<|tool_calls_section_begin|>"),
        ("lfm2", "<|tool_call_start|>"),
        ("nemotron", "<TOOLCALL>"),
        ("phi", "<|tool_call|>"),
    ],
)
def test_auto_is_free_until_a_call_opens_and_then_strict(name: str, opening: str) -> None:
    format = FORMATS[name]
    options = options_for(TOOLS)
    spec = grammar(options, format)
    end = set(VOCABULARY.eos_token_ids)
    assert end <= set(accept_text(spec, "Plain text, with < and { and é and <too"))
    after = accept_text(spec, opening)
    assert not end & set(after)
    assert len(after) < 16
    for seed in range(5):
        compiled = COMPILER.compile(spec).new_constraint()
        for token_id in _token_ids(opening):
            compiled.accept(token_id)
        rest = walk(compiled, VOCABULARY, random.Random(seed), 500)
        if rest is not None:
            content, calls = read(options, format, opening + rest.decode())
            assert content == opening.removesuffix(format.trigger or format.first).rstrip()
            assert calls
            for call in calls:
                check_call(*call)


@pytest.mark.parametrize(
    ("name", "text", "opening"),
    [
        ("qwen_coder", "I check.\n", "<function="),
        ("minimax", "Hm ", '<invoke name="'),
        ("seed", "", "<function="),
        ("kimi", "Hm ", "<|tool_call_begin|>functions."),
        ("deepseek_v31", "Hm ", "<\uff5ctool\u2581call\u2581begin\uff5c>"),
        ("minimax_m3", "", ']<]minimax[>[<invoke name="'),
        ("hunyuan3", "Hm ", "<tool_call>"),
    ],
)
def test_a_call_may_open_without_its_section(name: str, text: str, opening: str) -> None:
    """From there on, too, only a valid call may be written."""
    opening = text + opening
    options = options_for(TOOLS)
    spec = grammar(options, FORMATS[name])
    assert not set(VOCABULARY.eos_token_ids) & set(accept_text(spec, opening))
    num_calls = 0
    for seed in range(5):
        compiled = COMPILER.compile(spec).new_constraint()
        for part in _split(opening, "<|tool_call_begin|>"):
            for token_id in _token_ids(part):
                compiled.accept(token_id)
        rest = walk(compiled, VOCABULARY, random.Random(seed), 500)
        if rest is not None:
            content, calls = read(options, FORMATS[name], opening + rest.decode())
            assert content == text.rstrip()
            assert calls
            num_calls += len(calls)
            for call in calls:
                check_call(*call)
    assert num_calls
    required = grammar(options_for(TOOLS, tool_choice="required"), FORMATS[name])
    with pytest.raises(AssertionError):
        accept_text(required, opening)


def _token_ids(text: str) -> list[int]:
    ids: list[int] = []
    for part in _split(text, "[TOOL_CALLS]"):
        is_special = part in SPECIALS
        ids += [VOCABULARY.id_of(part.encode())] if is_special else VOCABULARY.encode(part)
    return ids


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (GrammarSpec("json_schema", '{"enum": ["yes", "no"]}'), {'"yes"', '"no"'}),
        (GrammarSpec("choice", '["yes", "no"]'), {"yes", "no"}),
        (GrammarSpec("regex", "^(yes|no)$"), {"yes", "no"}),
        (GrammarSpec("lark", 'start: "yes" | "no"'), {"yes", "no"}),
    ],
)
@pytest.mark.parametrize("name", ["hermes", "mistral", *nightly("llama_json")])
def test_a_final_answer_has_its_form_and_calls_theirs(
    answer: GrammarSpec, expected: set[str], name: str
) -> None:
    options = options_for(TOOLS + CUSTOM)
    answers = texts(ToolGrammar(options, FORMATS[name], WRITER, answer).build(), 16)
    kinds = set()
    for text in answers:
        content, calls = read(options, FORMATS[name], text)
        assert bool(content) != bool(calls)
        assert not content or content in expected
        kinds.add(bool(calls))
        for call in calls:
            check_call(*call)
    assert kinds == {True, False}


def test_a_regex_is_written_for_lark() -> None:
    assert regex("^a/b$") == r"/a\/b/"
    assert regex(r"a\/b\$") == r"/a\/b\$/"
    assert regex("a\nb") == r"/a\nb/"
    assert regex("^$") == '""'
