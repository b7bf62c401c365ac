"""The messages of Muse Glimmer, with recipients: how they are read, enforced and stopped."""

import json
import random
import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import GrammarSpec, SamplingParams, StopScope
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.message_grammar import MuseGrammar
from stonechat_server.structured.structure import Structure
from stonechat_server.tool_formats import muse
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB, walk
from tests.server.bodies import ask, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, SpecialTokenizer, text_script
from tests.server.structured.test_model_outputs import VocabularyTokenizer, check_allowed

TEMPLATE = """\
{{- '<|start|>system<|message|>Reasoning strength: ' ~ (reasoning_strength or 'high') ~ '<|eot|>' }}
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}
{%- if m.role != 'assistant' %}{{ '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|eot|>' }}
{%- else %}
{%- if m.reasoning_content %}
{{- '<|start|>assistant to=self<|message|>' ~ m.reasoning_content ~ '<|eom|>' }}{% endif %}
{%- for c in m.tool_calls or [] %}
{{- '<|start|>assistant to=' ~ c.function.name ~ '<|message|><atem:function_calls>' }}
{{- c.function.arguments | tojson ~ '</atem:function_calls><|eot|>' }}
{%- else %}{{ '<|start|>assistant to=user<|message|>' ~ m.content ~ '<|eot|>' }}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "hours": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": PARAMETERS},
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
SQL: dict[str, Any] = {"type": "custom", "custom": {"name": "sql"}}
NEXT = "<|eom|><|start|>assistant"
THOUGHT = f" to=self<|message|>Rome? <b>\n{NEXT}"
FINAL = " to=user<|message|>It is\nsunny."
MARKUP = (
    '<atem:function_calls>\n<atem:invoke name="get_weather">\n'
    '<atem:parameter name="city">Rome <|</atem:parameter>\n'
    '<atem:parameter name="hours">[1, 2]</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>"
)
CALL = f" to=get_weather<|message|>{MARKUP}"
CALLED = ("get_weather", {"city": "Rome <|", "hours": [1, 2]})
NOW_CALL = (
    ' to=now<|message|><atem:function_calls>\n<atem:invoke name="now">\n'
    "</atem:invoke>\n</atem:function_calls>"
)
CUSTOM = '<custom_tool_call name="sql">\nSELECT 1\n</custom_tool_call>'


def specify(**fields: Any) -> AnswerSpec:
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], **fields}
    tokenizer: Any = VocabularyTokenizer(muse.TOKENS)
    return Structure(tokenizer).specify(ChatCompletionRequest.model_validate(body), TEMPLATE)


Answer = tuple[str, str, list[tuple[str, str]], bool]


def read(spec: AnswerSpec, pieces: list[str], is_cut: bool = False) -> Answer:
    """Return the reasoning, the content, the calls, and whether the last call is incomplete.

    With `is_cut`, a limit cut the answer.
    """
    parser = spec.after_prompt("", SamplingParams())[1]()
    reasoning = content = ""
    calls: list[tuple[str, str]] = []
    for i, piece in enumerate(pieces):
        for delta in parser.feed(piece, finished=i == len(pieces) - 1):
            match delta:
                case ReasoningDelta(text):
                    reasoning += text
                case ContentDelta(text, may_be_call):
                    content += "" if is_cut and may_be_call else text
                case ToolCallDelta():
                    calls += [(delta.name, "")] if delta.name else []
                    assert delta.index == len(calls) - 1
                    calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return reasoning, content, calls, parser.is_call_cut


def values(calls: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    return [(name, json.loads(text) if name != "sql" else text) for name, text in calls]


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (FINAL, "", "It is\nsunny.", []),
        ("<|message|>It is\nsunny.<|eot|>", "", "It is\nsunny.", []),
        (THOUGHT + FINAL, "Rome? <b>\n", "It is\nsunny.", []),
        (THOUGHT + THOUGHT + FINAL, "Rome? <b>\n\n\nRome? <b>\n", "It is\nsunny.", []),
        (THOUGHT[: -len(NEXT)], "Rome? <b>\n", "", []),
        (CALL, "", "", [CALLED]),
        (f"{THOUGHT}{CALL}<|eot|>", "Rome? <b>\n", "", [CALLED]),
        (f"{CALL}{NEXT}{NOW_CALL}", "", "", [CALLED, ("now", {})]),
        (f"{FINAL}{NEXT}{CALL}", "", "It is\nsunny.", [CALLED]),
        (f" to=user<|message|>{CUSTOM}{NEXT}{CALL}", "", "", [("sql", "SELECT 1"), CALLED]),
        (f" to=user<|message|>Write:\n{MARKUP}<|eot|>", "", f"Write:\n{MARKUP}", []),
        (f" to=self<|message|>{MARKUP}{NEXT}{FINAL}", MARKUP, "It is\nsunny.", []),
        (f"{FINAL}<|eot|><|start|>user<|message|>More?", "", "It is\nsunny.", []),
        ("No header <|eom here", "", "No header <|eom here", []),
        ("to=", "", "to=", []),
        ("Not <|message|>one", "", "Not <|message|>one", []),
    ],
)
def test_every_split(text: str, reasoning: str, content: str, calls: list[Any]) -> None:
    spec = specify(tools=[WEATHER, NOW, SQL])
    for pieces in ([text], [*text, ""], *([text[:i], text[i:]] for i in range(len(text)))):
        found = read(spec, pieces)
        assert (found[0], found[1], values(found[2]), found[3]) == (
            *(reasoning, content, calls),
            False,
        )


@pytest.mark.parametrize("tools", [[], [WEATHER, NOW]])
def test_a_limit_in_any_place(tools: list[Any]) -> None:
    """What is read of a cut answer is the beginning of what is read of the whole."""
    text = f"{THOUGHT}{FINAL}" + f"{NEXT}{CALL}{NEXT}{NOW_CALL}" * bool(tools)
    spec = specify(tools=tools)
    whole = read(spec, [text])
    tokens = re.findall(r"<\|[a-z]+\|>|.", text, re.DOTALL)
    for num_tokens in range(len(tokens)):
        cut = read(spec, tokens[:num_tokens] or [""], is_cut=True)
        assert whole[0].startswith(cut[0])
        assert whole[1].startswith(cut[1]), tokens[:num_tokens]
        for (name, arguments), (whole_name, whole_arguments) in zip(
            cut[2], whole[2][: len(cut[2])], strict=True
        ):
            assert name == whole_name
            assert whole_arguments.startswith(arguments) or json.loads(arguments)["city"]


def test_a_call_without_its_required_argument_is_cut() -> None:
    opening = CALL.partition("<atem:parameter")[0]
    assert read(specify(tools=[WEATHER]), [opening])[2:] == ([("get_weather", "")], True)
    assert read(specify(tools=[WEATHER]), [f"{opening}<|eot|>"])[3]


@pytest.fixture
def client(new_client: ClientFactory, engine: FakeEngine) -> TestClient:
    engine.tokenizer = SpecialTokenizer(TEMPLATE, muse.TOKENS)
    return new_client()


def test_an_answer_through_the_server(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(THOUGHT[:30], THOUGHT[30:], CALL)
    answer = ask(client, tools=[WEATHER])
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Rome? <b>\n"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == CALLED
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1
    assert not engine.requests[-1].params.skip_special_tokens
    history = [
        {"role": "user", "content": "Weather?"},
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "Sunny"},
    ]
    engine.script = text_script(THOUGHT + FINAL, "<|eot|>", "<|start|>user")
    choice = ask(client, messages=history, tools=[WEATHER])["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "stop"
    assert (message["reasoning_content"], message["content"]) == ("Rome? <b>\n", "It is\nsunny.")
    prompt = bytes(i for i in engine.requests[-1].prompt_token_ids if i < 256).decode()
    assert "to=get_weather" in prompt
    assert "Sunny" in prompt


def test_the_effort_reaches_the_template(client: TestClient, engine: FakeEngine) -> None:
    for effort in ("low", None):
        post(client, **({"reasoning_effort": effort} if effort else {}))
        prompt = bytes(i for i in engine.requests[-1].prompt_token_ids if i < 256).decode()
        assert f"Reasoning strength: {effort or 'high'}<" in prompt
        assert engine.requests[-1].params.grammar is None


def test_stop_strings_apply_to_messages_to_the_user(client: TestClient, engine: FakeEngine) -> None:
    post(client, stop="\n", tools=[WEATHER])
    assert engine.stop_rules.scope == StopScope(
        (" to=user<|message|>", "<|start|>assistant<|message|>"), until=("<|eom|>",), unless="to="
    )


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (THOUGHT + FINAL, {}),
        (THOUGHT + CALL, {}),
        (re.sub(r"\n", "", CALL), {}),
        (f"{FINAL}{NEXT}{CALL}{NEXT}{NOW_CALL}", {}),
        (f"{CALL}{NEXT}{NOW_CALL}", {"tool_choice": "required"}),
        (THOUGHT + NOW_CALL, {"tool_choice": {"type": "function", "function": {"name": "now"}}}),
        (f"{THOUGHT} to=user<|message|>{CUSTOM}", {"tool_choice": "required"}),
        (f'{THOUGHT} to=user<|message|>{{"a": 1}}', {"response_format": {"type": "json_object"}}),
        (CALL, {"response_format": {"type": "json_object"}}),
    ],
)
def test_what_the_model_writes_is_allowed(text: str, fields: dict[str, Any]) -> None:
    spec = specify(tools=[WEATHER, NOW, SQL], **fields)
    assert spec.grammar is not None
    check_allowed(spec.grammar, text, muse.TOKENS)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (CALL.replace("[1, 2]", "[1, 2, 3, 4]"), {}),
        (CALL.replace("hours", "hour"), {}),
        (CALL.replace("to=get_weather", "to=now"), {}),
        (FINAL, {"tool_choice": "required"}),
        (f"{FINAL}{NEXT}{CALL}", {"tool_choice": "required"}),
        (f"{CALL}{NEXT}{NOW_CALL}", {"parallel_tool_calls": False}),
        (FINAL, {"response_format": {"type": "json_object"}}),
    ],
)
def test_what_does_not_fit_is_barred(text: str, fields: dict[str, Any]) -> None:
    spec = specify(tools=[WEATHER, NOW], **fields)
    assert spec.grammar is not None
    with pytest.raises(AssertionError):
        check_allowed(spec.grammar, text, muse.TOKENS)


VOCABULARY = ByteVocabulary(muse.TOKENS)
COMPILER = GrammarCompiler(VOCABULARY, PADDED_VOCAB)
WRITER = LarkWriter({text: VOCABULARY.id_of(text.encode()) for text in muse.TOKENS})


def walks(spec: GrammarSpec, count: int = 30) -> list[str]:
    compiled, rng = COMPILER.compile(spec), random.Random(5)
    answers = [walk(compiled.new_constraint(), VOCABULARY, rng, 800) for _ in range(count)]
    return [text.decode(errors="replace") for text in answers if text is not None]


def test_the_final_message_has_the_required_form() -> None:
    answer = GrammarSpec("json_schema", '{"enum": ["yes", "no"]}')
    for text in walks(MuseGrammar(None, WRITER, answer).build()):
        assert json.loads(read(specify(), [text])[1]) in ("yes", "no")
    texts = walks(MuseGrammar(None, WRITER, answer, is_open=True).build())
    assert set(texts) == {'"yes"', '"no"'}


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_bounds_the_reasoning(budget: int) -> None:
    texts = walks(MuseGrammar(None, WRITER, budget=budget).build(), 20)
    assert texts
    for text in texts:
        thought = text.partition("to=self<|message|>")[2].partition("<|eom|>")[0]
        assert len(VOCABULARY.encode(thought)) <= 3 * budget
        assert text.count("to=self<|message|>") <= min(budget, 1)
