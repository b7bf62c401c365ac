"""What a model of each family writes is allowed by the grammar, and is read back as its calls.

The outputs are those that the families' templates write, in several spellings and places.
"""

import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import pytest

from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.types import GrammarSpec, SamplingParams
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.structure import Structure
from stonechat_server.tool_formats.select import FORMATS, select_format
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB, allowed_ids, allows
from tests.nightly import nightly
from tests.server.parsers.families import JSON_FAMILIES, Family
from tests.server.parsers.tag_families import TAG_FAMILIES
from tests.server.parsers.test_round_trip import render

OTHERS = ("harmony", "muse", "functionary32")
"""Whole answers of these consist of messages: they have tests of their own."""
FAMILIES = {f.name: f for f in (*JSON_FAMILIES, *TAG_FAMILIES) if f.name not in OTHERS}
THINKS = "{# </think> #}"
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    for name in ("get_weather", "get_weather_of_days")
] + [{"type": "function", "function": {"name": "now"}}]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_weather", {"city": "New York", "days": 3}),
    ("now", {}),
    ("get_weather_of_days", {"city": "Paris"}),
]


class VocabularyTokenizer:
    """What a `Structure` needs of a tokenizer, over a `ByteVocabulary`."""

    chat_template = None

    def __init__(self, specials: Sequence[str]) -> None:
        self.vocabulary = ByteVocabulary(specials)
        self.special_ids = frozenset(self.vocabulary.id_of(text.encode()) for text in specials)

    def token_text(self, token_id: int) -> str:
        return self.vocabulary.token_bytes(token_id).decode(
            "latin-1" if token_id < 256 else "utf-8"
        )

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return self.vocabulary.encode(text)


def specify(family: Family, template: str, **fields: Any) -> AnswerSpec:
    tokenizer = VocabularyTokenizer(family.specials)
    messages = [{"role": "user", "content": "Go."}]
    body = {"model": "m", "messages": messages, "tools": TOOLS, **fields}
    request = ChatCompletionRequest.model_validate(body)
    return Structure(tokenizer).specify(request, template)  # type: ignore[arg-type]


@cache
def compiler_for(specials: tuple[str, ...]) -> tuple[ByteVocabulary, GrammarCompiler]:
    vocabulary = ByteVocabulary(specials)
    return vocabulary, GrammarCompiler(vocabulary, PADDED_VOCAB)


def check_allowed(spec: GrammarSpec, text: str, specials: Sequence[str]) -> None:
    """Walk through the text token by token. Special tokens are single tokens."""
    vocabulary, compiler = compiler_for(tuple(specials))
    constraint = compiler.compile(spec).new_constraint()
    pattern = "|".join(map(re.escape, specials))
    done = ""
    for part in re.split(f"({pattern})", text) if specials else [text]:
        ids = [vocabulary.id_of(part.encode())] if part in specials else vocabulary.encode(part)
        for token_id in ids:
            assert allows(constraint, token_id), (done, vocabulary.token_bytes(token_id))
            constraint.accept(token_id)
            done += vocabulary.token_bytes(token_id).decode(errors="replace")
    end = set(vocabulary.eos_token_ids)
    assert constraint.is_finished or end & set(allowed_ids(constraint)), done


def read(spec: AnswerSpec, pieces: Sequence[str]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Return the content, the reasoning, and the calls."""
    _, new_parser = spec.after_prompt("", SamplingParams())
    parser = new_parser()
    content, reasoning, calls = "", "", []
    for i, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=i == len(pieces) - 1):
            if isinstance(delta, ContentDelta):
                content += delta.text
            elif isinstance(delta, ReasoningDelta):
                reasoning += delta.text
            else:
                assert isinstance(delta, ToolCallDelta)
                if delta.name is not None:
                    calls.append([delta.name, ""])
                calls[-1][1] += delta.arguments
    assert not parser.is_call_cut
    return content, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def written(family: Family, number: int | None = None) -> tuple[str, list[tuple[str, Any]]]:
    """What the family's template writes for the calls, and the calls."""
    calls = CALLS[: 1 if family.is_single else number]
    return render(family, "", calls).strip(), calls


def check(
    family: Family, text: str, calls: Any, content: str = "", reasoning: str = "", **fields: Any
) -> None:
    template = family.template + (THINKS if reasoning else "")
    assert select_format(template).name == family.name
    spec = specify(family, template, **fields)
    answer = text.partition("</think>")[2].lstrip() if reasoning else text
    assert spec.grammar is not None
    check_allowed(spec.grammar, answer, family.specials)
    assert read(spec, [text]) == (content, reasoning, calls)
    if "response_format" not in fields:
        specials = "|".join(map(re.escape, family.specials)) or r"(?!)"
        split = [piece for piece in re.split(f"({specials})|(.)", text, flags=re.S) if piece]
        assert read(spec, [*split, ""]) == (content, reasoning, calls)


def families(names: Collection[str] = FAMILIES) -> list[Any]:
    """One of each layout is enough for the default run."""
    firsts = {type(FORMATS[name].layout): name for name in reversed(list(names))}
    return [*firsts.values(), *nightly(*(name for name in names if name not in firsts.values()))]


def is_opened_by_a_line_break(name: str) -> bool:
    return "\n" in FORMATS[name].trigger or "```json" in FAMILIES[name].template


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_as_the_model_writes_them(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family)
    check(family, text, calls)


@pytest.mark.parametrize(
    "name", families([name for name in FAMILIES if not is_opened_by_a_line_break(name)])
)
def test_calls_without_line_breaks(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family)
    text = re.sub(r"\s*\n\s*", "", text)
    check(family, text, calls)
    check(family, text, calls, tool_choice="required")


@pytest.mark.parametrize("name", families())
def test_calls_with_more_line_breaks(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family)
    body = text.removeprefix(FORMATS[name].trigger)
    spaced = FORMATS[name].trigger + re.sub(r"\n(?=<(?!/parameter)|[\[{}\]])", "\n\n", body)
    check(family, spaced, calls)


@pytest.mark.parametrize("name", ["mistral", "kimi", "granite", "lfm2", "glm", "gemma4", "cohere"])
def test_space_behind_the_mark_of_a_section(name: str) -> None:
    family, trigger = FAMILIES[name], FORMATS[name].trigger
    text, calls = written(family, 1)
    for gap in (" ", "\n"):
        check(family, text.replace(trigger, trigger + gap, 1), calls)
        check(family, text.replace(trigger, trigger + gap, 1), calls, tool_choice="required")


@pytest.mark.parametrize("name", families())
def test_a_call_after_text_and_after_reasoning(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family, 1)
    if FORMATS[name].trigger:
        check(family, f"I look.\n{text}", calls, content="I look.")
        thought = f"<think>Hm.</think>\n\nI look. {text}"
        check(family, thought, calls, content="I look.", reasoning="Hm.")
    check(family, f"<think>Hm.</think>\n\n{text}", calls, reasoning="Hm.")


@pytest.mark.parametrize("name", ["glm", "gemma4", "function_gemma", "qwen_coder", "seed"])
def test_a_call_without_the_mark_that_opens_it(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family, 1)
    text = text.removeprefix(FORMATS[name].trigger).lstrip()
    for end in (text, text.removesuffix(FORMATS[name].layout.after_arguments)):  # type: ignore[union-attr]
        found = read(specify(family, family.template), [f"I look.\n{end}"])
        assert found == ("I look.", "", calls)
        assert read(specify(family, family.template), [*f"I look.\n{end}", ""]) == found


def test_python_calls_without_the_mark_that_opens_them() -> None:
    family = FAMILIES["lfm2"]
    for text, content, num_calls in [
        ('[get_weather(city="New York", days=3), now()]', "", 2),
        ('I look.[get_weather(city="New York", days=3)]', "I look.", 1),
        ("See [1] and [get_weather].", "See [1] and [get_weather].", 0),
    ]:
        check(family, text, CALLS[:num_calls], content=content)


@pytest.mark.parametrize("name", ["lfm2", "nemotron", "deepseek_v31", "minimax", "minimax_m3"])
def test_sections_may_follow_each_other(name: str) -> None:
    family = FAMILIES[name]
    sections = [render(family, "", [call]).strip() for call in CALLS]
    for gap in ("", "\n"):
        check(family, gap.join(sections), CALLS)
        check(family, gap.join(sections), CALLS, tool_choice="required")


@pytest.mark.parametrize("name", families())
def test_an_answer_without_a_call(name: str) -> None:
    check(
        FAMILIES[name],
        "No call, but a < b and (c) ok.",
        [],
        content="No call, but a < b and (c) ok.",
    )


@pytest.mark.parametrize("name", families())
def test_required_calls_may_begin_and_end_with_line_breaks(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family)
    check(family, f"\n{text}", calls, tool_choice="required")
    if not family.is_single and FORMATS[name].trigger:
        text, calls = written(family, 1)
        check(family, text, calls, tool_choice="required", parallel_tool_calls=False)


@pytest.mark.parametrize("name", ["glm", "hermes", "qwen_coder", "mistral", "minimax"])
def test_a_name_that_begins_another_is_never_barred(name: str) -> None:
    family = FAMILIES[name]
    text, calls = written(family)
    for spelling in (text, re.sub(r"\s*\n\s*", "", text)):
        check(family, spelling, calls, tool_choice="required")


@pytest.mark.parametrize(
    ("text", "content", "num_calls"),
    [
        ("all\nHello", "Hello", 0),
        ('get_weather\n{"city": "Rome"}', "", 1),
        ('get_weather\n{"city": "Rome"}>>>now\n{}', "", 2),
        ("all\nI look.>>>now\n{}", "I look.", 1),
    ],
)
def test_an_answer_may_open_in_the_prompt(text: str, content: str, num_calls: int) -> None:
    family = next(family for family in JSON_FAMILIES if family.name == "functionary32")
    spec = specify(family, family.template)
    assert spec.grammar is not None
    check_allowed(spec.grammar, text, ())
    for pieces in ([text], [*text, ""]):
        found = read(spec, pieces)
        assert (found[0], len(found[2])) == (content, num_calls)
