"""What a template shows: tools, calls, the format, and marks that the grammar must allow."""

from typing import Any

import pytest

from stonechat_models.types import SamplingParams
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta
from stonechat_server.prompt.template_traits import UNKNOWN_FORM, TemplateTraits, read_traits
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.structure import Structure
from tests.server.fake_engine import ByteTokenizer
from tests.server.structured.test_model_outputs import VocabularyTokenizer, check_allowed

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "c",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
}
HISTORY = [
    {"role": "user", "content": "Go."},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "Sunny", "tool_call_id": "c"},
]


def traits(template: str) -> TemplateTraits:
    return read_traits(template, "auto", lambda text: False, has_reasoning=True)


def specify(template: str, specials: tuple[str, ...] = (), **fields: Any) -> AnswerSpec:
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], **fields}
    request = ChatCompletionRequest.model_validate(body)
    tokenizer: Any = VocabularyTokenizer(specials)
    return Structure(tokenizer).specify(request, template)


@pytest.mark.parametrize(
    ("template", "renders_tools", "renders_calls", "name", "is_known"),
    [
        ("{{ tools }} {{ m.tool_calls }} <tool_call>", True, True, "hermes", True),
        ("{{ tools }} <|tool_call|>", True, False, "granite", True),
        ("{{ m.tool_calls }} <\uff5ctool\u2581calls\u2581begin\uff5c>", False, True, None, True),
        ("{{ tools }} {{ m.tool_calls }} <my_call>", True, True, "generic", False),
        ("{{ m.content }} <tool_call>", False, False, "generic", True),
        ("{{ m.tool_calls }}", False, False, "generic", True),
    ],
)
def test_traits(
    template: str, renders_tools: bool, renders_calls: bool, name: str | None, is_known: bool
) -> None:
    found = traits(template)
    assert (found.renders_tools, found.renders_calls) == (renders_tools, renders_calls)
    assert found.format.name == (name or "deepseek_v31")
    assert found.is_known is is_known


def test_an_unknown_form_is_described_and_named() -> None:
    template = "{{ tools }} {{ m.tool_calls }} <my_call>"
    spec = specify(template, tools=[TOOL])
    assert spec.tools
    assert '<tool_call>\n{"name": "FUNCTION"' in spec.added_text
    structure = Structure(ByteTokenizer())
    assert structure.warning(template) == UNKNOWN_FORM
    assert structure.warning("{{ tools }} <tool_call>") is None
    assert structure.warning("{{ m.content }}") is None
    assert "You can call" not in specify("{{ tools }} <tool_call>", tools=[TOOL]).added_text


def test_a_template_that_renders_calls_and_no_tools_keeps_its_calls() -> None:
    template = "{{ m.tool_calls }} <\uff5ctool\u2581calls\u2581begin\uff5c>"
    spec = specify(template, tools=[TOOL], messages=HISTORY)
    assert spec.tools == []
    assert "<\uff5ctool\u2581call\u2581begin\uff5c>FUNCTION" in spec.added_text
    assert spec.messages[1]["tool_calls"]
    assert spec.messages[2]["role"] == "tool"


def test_a_template_that_renders_tools_and_no_calls_gets_them_as_text() -> None:
    spec = specify("{{ tools }} <|tool_call|>", tools=[TOOL], messages=HISTORY)
    assert spec.messages[1]["content"] == (
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
    )
    assert "tool_calls" not in spec.messages[1]
    assert spec.messages[2]["role"] == "tool"


COHERE = (
    "{{ tools }} {{ m.tool_calls }} <|START_ACTION|> <|START_RESPONSE|> <|END_THINKING|>",
    ("<|START_ACTION|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_THINKING|>"),
)
GEMMA = (
    "{{ tools }} {{ m.tool_calls }} <tool_call|> <channel|>",
    ("<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>"),
)
GRANITE = ("{{ tools }} </think> <response></response> <|tool_call|>", ("<|tool_call|>",))
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "object", "additionalProperties": False}},
}


@pytest.mark.parametrize(
    ("family", "text", "fields"),
    [
        (COHERE, "<|START_RESPONSE|>Hello<|END_RESPONSE|>", {"tools": [TOOL]}),
        (COHERE, "<|START_RESPONSE|>{}<|END_RESPONSE|>", {"response_format": SCHEMA}),
        (
            COHERE,
            "<|START_RESPONSE|>{}<|END_RESPONSE|>",
            {"response_format": SCHEMA, "tools": [TOOL]},
        ),
        (COHERE, "{}", {"response_format": SCHEMA}),
        (GEMMA, "Hello<channel|>", {"tools": [TOOL]}),
        (GEMMA, "Hello<|channel>thought\n<channel|>", {"tools": [TOOL]}),
        (GRANITE, "<response>{}</response>", {"response_format": SCHEMA}),
        (GRANITE, "<response>Hello</response>", {"tools": [TOOL]}),
    ],
)
def test_marks_are_allowed_and_removed(
    family: tuple[str, tuple[str, ...]], text: str, fields: dict[str, Any]
) -> None:
    template, specials = family
    spec = specify(template, specials, **fields)
    assert spec.grammar is not None
    check_allowed(spec.grammar, text, specials)
    _, new_parser = spec.after_prompt("", SamplingParams())
    parser = new_parser()
    deltas = [*parser.feed(text, finished=False), *parser.feed("", finished=True)]
    content = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    assert content in ("Hello", "{}")


def test_marks_around_an_answer_after_reasoning() -> None:
    spec = specify(GRANITE[0])
    _, new_parser = spec.after_prompt("", SamplingParams())
    for pieces in (["<think>a</think><response>Hello</response>"], "<think>a</think>\nHello"):
        parser = new_parser()
        deltas = [delta for piece in pieces for delta in parser.feed(piece, finished=False)]
        deltas += parser.feed("", finished=True)
        texts = {ReasoningDelta: "", ContentDelta: ""}
        for delta in deltas:
            assert isinstance(delta, ReasoningDelta | ContentDelta)
            texts[type(delta)] += delta.text
        assert texts == {ReasoningDelta: "a", ContentDelta: "Hello"}
