"""Each way to ask for a form becomes its grammar, and contradictions are refused."""

import json
from typing import Any

import pytest

from stonechat_models import GrammarSpec
from stonechat_server.errors import APIError
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_form import AnswerForm, answer_form
from tests.server.bodies import body

SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}


def form_of(**fields: Any) -> AnswerForm | None:
    return answer_form(ChatCompletionRequest.model_validate(body(**fields)))


def refusal_of(**fields: Any) -> APIError:
    with pytest.raises(APIError) as error_info:
        form_of(**fields)
    assert error_info.value.status == 400
    return error_info.value


def test_text_and_nothing_are_no_form() -> None:
    assert form_of() is None
    assert form_of(response_format={"type": "text"}) is None
    assert form_of(structured_outputs={}) is None


def test_choices_are_a_grammar_and_an_instruction() -> None:
    form = form_of(structured_outputs={"choice": ["ja", "größer"]})
    assert form is not None
    assert form.grammar.kind == "choice"
    assert json.loads(form.grammar.source) == ["ja", "größer"]
    assert form.instruction is not None
    assert '["ja", "größer"]' in form.instruction
    assert form.param == "structured_outputs.choice"


def test_a_regex_and_a_lark_grammar_reach_the_compiler_unchanged() -> None:
    for field, kind, source in (
        ("regex", "regex", r"[a-z]{2}\d"),
        ("grammar", "lark", 'start: "a" | "b"'),
    ):
        form = form_of(structured_outputs={field: source})
        assert form == AnswerForm(
            grammar=GrammarSpec(kind, source),  # type: ignore[arg-type]
            instruction=None,
            param=f"structured_outputs.{field}",
        )


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)], ids=["object", "text"])
def test_a_schema_may_be_an_object_or_its_text(schema: object) -> None:
    form = form_of(structured_outputs={"json": schema})
    assert form is not None
    assert form.grammar.kind == "json_schema"
    assert json.loads(form.grammar.source) == SCHEMA
    assert form.instruction is not None
    assert "größe" in form.instruction


def test_any_object_is_a_form_too() -> None:
    definition = {"name": "thing", "description": "a thing"}
    for response_format in (
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": definition},
    ):
        form = form_of(response_format=response_format)
        assert form is not None
        assert form.grammar.kind == "json_schema"
        assert json.loads(form.grammar.source) == {"type": "object"}
    assert form is not None
    assert form.instruction is not None
    assert "'thing' (a thing)" in form.instruction


def test_two_forms_are_refused() -> None:
    both = refusal_of(response_format={"type": "json_object"}, structured_outputs={"regex": "a"})
    assert both.param == "structured_outputs"
    assert "cannot both be given" in both.message
    two = refusal_of(structured_outputs={"regex": "a", "choice": ["a"]})
    assert two.param == "structured_outputs"
    assert "exactly one of json, regex, choice, grammar" in two.message


def test_a_schema_that_is_not_json_is_refused() -> None:
    error = refusal_of(structured_outputs={"json": '{"type": '})
    assert error.param == "structured_outputs.json"
    assert "not valid JSON" in error.message
