"""The calls that a model's template writes are read back as the same calls.

`families` has the templates.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest

from stonechat_models import SamplingParams
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.grammar_checks import GrammarPendingError
from stonechat_server.structured.structure import Structure
from stonechat_server.tool_formats.select import FORMATS, select_format
from tests.nightly import one_in
from tests.server.fake_engine import ByteTokenizer
from tests.server.parsers.families import JSON_FAMILIES, Family
from tests.server.parsers.tag_families import TAG_FAMILIES

FAMILIES = [*JSON_FAMILIES, *TAG_FAMILIES]

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "text": {"type": "string"},
                    "mode": {"enum": ["a", "w"]},
                    "owner": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "size": {"type": "integer"},
                    "share": {"type": "number"},
                    "is_new": {"type": "boolean"},
                    "lines": {"type": "array", "items": {"type": "integer"}},
                    "options": {"type": "object", "additionalProperties": True},
                    "day": {"type": "string", "maxLength": 10},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "clock.now"}},
]
CODE = 'def f(x):\n    return {"a": x["b\\n"]} if x < 3 else \'<b>\'\n\n# é 👋'
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("write_file", {"path": "/tmp/a b.py", "text": CODE, "mode": "w", "owner": None, "size": 12}),
    ("clock.now", {}),
    (
        "write_file",
        {
            "path": "7",
            "owner": "me",
            "share": 0.5,
            "is_new": True,
            "lines": [1, 2],
            "options": {"deep": {"list": ["it's", False, None]}},
            "day": "2024-01-02",
        },
    ),
    ("write_file", {"text": "", "owner": "nullable", "is_new": False, "lines": [], "options": {}}),
]


@dataclass
class FamilyTokenizer(ByteTokenizer):
    """Byte tokens and the special tokens of a family."""

    specials: tuple[str, ...] = ()
    special_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self.special_ids = frozenset(range(256, 256 + len(self.specials)))

    def token_text(self, token_id: int) -> str:
        return self.specials[token_id - 256] if token_id >= 256 else super().token_text(token_id)


def request(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "Go."}]
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": messages, "tools": TOOLS} | fields
    )


@cache
def template_of(family: Family) -> ChatTemplate:
    return ChatTemplate(family.template, {})


def render(family: Family, content: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """Render the assistant's message, without the generation prompt and the end token."""
    template = template_of(family)
    user = {"role": "user", "content": "Go."}
    tool_calls = [
        {
            "id": f"functions.{name}:{i}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for i, (name, arguments) in enumerate(calls)
    ]
    message = {"role": "assistant", "content": content, "tool_calls": tool_calls}
    prompt = template.render([user], RenderOptions())
    whole = template.render([user, message], RenderOptions(add_generation_prompt=False))
    assert whole.startswith(prompt)
    assert whole.endswith(family.end)
    return whole.removeprefix(prompt).removesuffix(family.end)


@cache
def specify(family: Family) -> AnswerSpec:
    structure = Structure(FamilyTokenizer(specials=family.specials))
    try:
        while True:
            try:
                return structure.specify(request(), family.template)
            except GrammarPendingError as pending:
                pending.check.exception()  # waits
    finally:
        structure.close()


def read(family: Family, pieces: list[str]) -> tuple[str, list[tuple[str, Any]], list[str]]:
    spec = specify(family)
    prompt = template_of(family).render(spec.messages, RenderOptions())
    _, new_parser = spec.after_prompt(prompt, SamplingParams())
    parser = new_parser()
    content, calls, ids = "", [], []
    for i, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=i == len(pieces) - 1):
            if isinstance(delta, ContentDelta):
                content += delta.text
            elif isinstance(delta, ToolCallDelta):
                if delta.name is not None:
                    calls.append([delta.name, ""])
                    ids.append(delta.id or "")
                calls[-1][1] += delta.arguments
            else:
                assert isinstance(delta, ReasoningDelta)
    assert not parser.is_call_cut
    return content, [(name, json.loads(arguments)) for name, arguments in calls], ids


# Behind content, calls of hyperclova are a turn of their own: the content's turn has ended.
CALL_IS_THE_WHOLE_ANSWER = ("llama_json", "pythonic", "xlam", "hyperclova")
WITH_CONTENT = [f for f in FAMILIES if f.name not in CALL_IS_THE_WHOLE_ANSWER]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_what_the_template_writes_is_read_back(family: Family) -> None:
    check_round_trip(family, "")


@pytest.mark.parametrize("family", one_in(3, WITH_CONTENT), ids=lambda family: family.name)
def test_content_before_the_calls_is_read_back(family: Family) -> None:
    check_round_trip(family, "I shall write.")


def check_round_trip(family: Family, content: str) -> None:
    assert select_format(family.template).name == family.name
    for calls in [[call] for call in CALLS] if family.is_single else [CALLS, CALLS[:1]]:
        text = render(family, content, calls)
        whole = read(family, [text])
        assert whole[:2] == (content, calls)
        if family.is_single or calls is CALLS:
            assert read(family, [*text, ""])[:2] == (content, calls)
        if family.name == "kimi":
            assert whole[2] == [f"functions.{name}:{i}" for i, (name, _) in enumerate(calls)]


def test_every_format_whose_templates_write_calls_is_tested() -> None:
    assert {family.name for family in FAMILIES} == FORMATS.keys() - {"generic"}
