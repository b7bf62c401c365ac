"""The messages of gpt-oss, with channels: how they are read, enforced and stopped."""

import json
import random
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import GrammarSpec, StopScope
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_server.parsers.deltas import (
    ContentDelta,
    ContentParser,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.parsers.harmony import HarmonyParser
from stonechat_server.parsers.tool_calls import ToolNames
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.message_grammar import HarmonyGrammar
from stonechat_server.tool_formats import harmony
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB, allowed_ids, walk
from tests.server.bodies import ask, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, SpecialTokenizer, text_script

TEMPLATE = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|start|>{{ message.role }}
{%- if message.role == "assistant" %}<|channel|>final{% endif %}
{{- "<|message|>" ~ message.content ~ "<|end|>" }}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SQL: dict[str, Any] = {"type": "custom", "custom": {"name": "sql"}}
THOUGHT = "<|channel|>analysis<|message|>Rome? <b>\n<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>It is\nsunny."
CALL = (
    '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome <|"}'
)


def read(
    pieces: list[str], is_open: bool = False, has_reasoning: bool = True
) -> tuple[str, str, list[list[str]], bool]:
    """Return the reasoning, the content, the calls, and whether the last call is incomplete."""
    names = ToolNames(functions=["get_weather"])
    parser = HarmonyParser(names, ContentParser(), is_open, has_reasoning)
    reasoning = content = ""
    calls: list[list[str]] = []
    for i, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=i == len(pieces) - 1):
            match delta:
                case ReasoningDelta(text):
                    reasoning += text
                case ContentDelta(text):
                    content += text
                case ToolCallDelta():
                    calls += [[delta.name, ""]] if delta.name else []
                    calls[-1][1] += delta.arguments
    return reasoning, content, calls, parser.is_call_cut


ARGUMENTS = '{"city": "Rome <|"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FINAL, ("", "It is\nsunny.", [], False)),
        (THOUGHT + FINAL, ("Rome? <b>\n", "It is\nsunny.", [], False)),
        (THOUGHT + CALL, ("Rome? <b>\n", "", [["get_weather", ARGUMENTS]], False)),
        (CALL + "<|call|>", ("", "", [["get_weather", ARGUMENTS]], False)),
        (CALL[:-1], ("", "", [["get_weather", ARGUMENTS[:-1]]], True)),
        (
            THOUGHT + "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant" + CALL,
            ("Rome? <b>\n", "I look.", [["get_weather", ARGUMENTS]], False),
        ),
        (
            " to=functions.get_weather<|channel|>commentary json<|message|>{}",
            ("", "", [["get_weather", "{}"]], False),
        ),
        (THOUGHT + THOUGHT + FINAL, ("Rome? <b>\n\n\nRome? <b>\n", "It is\nsunny.", [], False)),
        (THOUGHT[:-20], (THOUGHT[30:-20], "", [], False)),
        ("No channels <|end here", ("", "No channels <|end here", [], False)),
        ("<|channel|>fin", ("", "", [], False)),
        ("<", ("", "<", [], False)),
        ("Not <|message|>one", ("", "Not <|message|>one", [], False)),
    ],
)
def test_every_split(text: str, expected: tuple[str, str, list[list[str]], bool]) -> None:
    assert read([text]) == expected
    assert read([*text, ""]) == expected
    for first in range(len(text) + 1):
        assert read([text[:first], text[first:]]) == expected, text[:first]


def test_an_open_message_and_reasoning_as_content() -> None:
    assert read(["sunny."], is_open=True) == ("", "sunny.", [], False)
    assert read([THOUGHT + FINAL], has_reasoning=False)[:2] == (
        "",
        "Rome? <b>\n\n\nIt is\nsunny.",
    )


@pytest.fixture
def client(new_client: ClientFactory, engine: FakeEngine) -> TestClient:
    engine.tokenizer = SpecialTokenizer(TEMPLATE, harmony.TOKENS)
    return new_client()


def test_an_answer_through_the_server(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(THOUGHT[:40], THOUGHT[40:], CALL)
    answer = ask(client, tools=[WEATHER])
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Rome? <b>\n"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "get_weather", "arguments": ARGUMENTS}
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1
    assert not engine.requests[-1].params.skip_special_tokens
    engine.script = text_script(THOUGHT + FINAL)
    message = ask(client)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Rome? <b>\n", "It is\nsunny.")
    assert engine.requests[-1].params.grammar is None


def test_stop_strings_apply_to_messages_to_the_user(
    client: TestClient, new_client: ClientFactory, engine: FakeEngine
) -> None:
    post(client, stop="\n", tools=[WEATHER])
    scope = engine.stop_rules.scope
    assert scope == StopScope(harmony.VISIBLE_HEADERS, until=("<|end|>",), unless="<|channel|>")
    post(new_client(reasoning=False), stop="\n")
    assert engine.stop_rules.scope is None


VOCABULARY = ByteVocabulary(harmony.TOKENS)
COMPILER = GrammarCompiler(VOCABULARY, PADDED_VOCAB)
WRITER = LarkWriter({text: VOCABULARY.id_of(text.encode()) for text in harmony.TOKENS})


def walks(source: HarmonyGrammar, count: int = 40) -> list[str]:
    compiled, rng = COMPILER.compile(source.build()), random.Random(5)
    answers = [walk(compiled.new_constraint(), VOCABULARY, rng, 600) for _ in range(count)]
    return [text.decode(errors="replace") for text in answers if text is not None]


def test_the_final_message_has_the_required_form(client: TestClient, engine: FakeEngine) -> None:
    post(client, response_format={"type": "json_object"})
    spec = engine.requests[-1].params.grammar
    assert spec is not None
    assert "final" in spec.source
    answer = GrammarSpec("json_schema", '{"enum": ["yes", "no"]}')
    for text in walks(HarmonyGrammar(None, WRITER, answer)):
        reasoning, content, _, _ = read([text])
        assert json.loads(content) in ("yes", "no")
        assert ("analysis" in text) == bool(reasoning or "<|message|><|end|>" in text)
    constraint = COMPILER.compile(HarmonyGrammar(None, WRITER, answer).build()).new_constraint()
    for text in ("<|channel|>", "final", " ", "<|constrain|>", "json", "<|message|>", '"yes"'):
        special = [VOCABULARY.id_of(text.encode())] if text in harmony.TOKENS else None
        for token_id in special or VOCABULARY.encode(text):
            assert token_id in allowed_ids(constraint)
            constraint.accept(token_id)
    texts = walks(HarmonyGrammar(None, WRITER, answer, is_open=True))
    assert set(texts) == {'"yes"', '"no"'}


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_bounds_the_reasoning(budget: int) -> None:
    texts = walks(HarmonyGrammar(None, WRITER, budget=budget), 20)
    assert texts
    for text in texts:
        thought = text.partition("analysis<|message|>")[2].partition("<|end|>")[0]
        assert len(VOCABULARY.encode(thought)) <= 3 * budget
        assert text.count("analysis<|message|>") <= min(budget, 1)


def test_custom_tools_are_called_in_the_final_message(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.script = text_script(
        '<|channel|>final<|message|><custom_tool_call name="sql">\nSELECT 1\n</custom_tool_call>'
    )
    choice = ask(client, tools=[SQL, WEATHER], stop="zzz")["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call["custom"] == {"name": "sql", "input": "SELECT 1"}
    assert engine.stop_rules.never_after == ("<custom_tool_call",)
