"""Each way to ask for a form becomes its grammar, and contradictions are refused."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import GrammarSpec
from stonechat_server.errors import APIError
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.structured.answer_form import AnswerForm, answer_form
from tests.server.bodies import body, error_of, post
from tests.server.fake_engine import FakeEngine

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
    assert refusal_of(structured_outputs={"regex": "a", "structural_tag": {}}).status == 400


def test_a_schema_that_is_not_json_is_refused() -> None:
    error = refusal_of(structured_outputs={"json": '{"type": '})
    assert error.param == "structured_outputs.json"
    assert "not valid JSON" in error.message


TEXT = json.dumps(SCHEMA, ensure_ascii=False)
LARK = 'start: "::=" | "a"\n'
NAMED = {"name": "s", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("fields", "kind", "source", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": SCHEMA}},
         "json_schema", TEXT, "response_format.schema"),
        ({"response_format": {"type": "json_object", "value": SCHEMA}},
         "json_schema", TEXT, "response_format.value"),
        ({"response_format": {"type": "json_object", "schema": None}},
         "json_schema", '{"type": "object"}', "response_format"),
        ({"response_format": {"type": "json_object", "schema": {}}},
         "json_schema", '{"type": "object"}', "response_format"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}},
         "json_schema", TEXT, "response_format.schema"),
        ({"json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
         "json_schema", TEXT, "json_schema.schema"),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA, "json_schema": NAMED}},
         "json_schema", TEXT, "response_format.json_schema.schema"),
        ({"structured_outputs": {"json_object": True}},
         "json_schema", '{"type": "object"}', "structured_outputs.json_object"),
        ({"json_schema": SCHEMA}, "json_schema", TEXT, "json_schema"),
        ({"json_schema": TEXT}, "json_schema", TEXT, "json_schema"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": TEXT, "json_schema": SCHEMA, "structured_outputs": {"json": SCHEMA}},
         "json_schema", TEXT, "structured_outputs.json"),
        ({"format": SCHEMA}, "json_schema", TEXT, "format"),
        ({"format": TEXT}, "json_schema", TEXT, "format"),
        ({"format": "json"}, "json_schema", '{"type": "object"}', "format"),
        ({"regex": "json"}, "regex", "json", "regex"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a", "b"]', "guided_choice"),
        ({"grammar": LARK}, "lark", LARK, "grammar"),
        ({"ebnf": LARK}, "lark", LARK, "ebnf"),
        ({"guided_grammar": LARK}, "lark", LARK, "guided_grammar"),
        ({"regex": "a", "response_format": {"type": "text"}}, "regex", "a", "regex"),
        ({"regex": "a", "grammar": "", "json_schema": None, "format": ""}, "regex", "a", "regex"),
    ],
)  # fmt: skip
def test_other_names_of_forms(fields: dict[str, Any], kind: str, source: str, param: str) -> None:
    form = form_of(**fields)
    assert form is not None
    assert (form.grammar.kind, form.grammar.source, form.param) == (kind, source, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}, "guided_json": SCHEMA}, "guided_json"),
        ({"structured_outputs": {"regex": "a"}, "regex": "b"}, "regex"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"format": "json", "grammar": LARK}, "grammar"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA, "value": {"a": 1}}},
         "response_format.value"),
        ({"response_format": {"type": "json_schema", "schema": {}, "json_schema": NAMED}},
         "response_format.schema"),
        ({"response_format": {"type": "json_object", "json_schema": NAMED}},
         "response_format.json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"format": "xml"}, "format"),
        ({"guided_json": "{"}, "guided_json"),
    ],
)  # fmt: skip
def test_contradictions_of_forms_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal_of(**fields).param == param


@pytest.mark.parametrize("name", ["grammar", "ebnf", "guided_grammar"])
@pytest.mark.parametrize(
    "source", ['root ::= "a"', "# x\n  my-rule   ::= [0-9]+\nroot ::= my-rule"]
)
def test_gbnf_is_refused_with_a_reason(name: str, source: str) -> None:
    error = refusal_of(**{name: source})
    assert (error.param, error.code) == (name, "invalid_grammar")
    assert "Lark" in error.message
    outputs = refusal_of(structured_outputs={"grammar": source})
    assert outputs.param == "structured_outputs.grammar"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": {"not": {}}}},
         "response_format.schema"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"regex": "("}, "regex"),
        ({"ebnf": "start: ("}, "ebnf"),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_enforced_is_refused_by_its_name(
    client: TestClient, fields: dict[str, Any], param: str
) -> None:
    error = error_of(post(client, **fields))
    assert (error["param"], error["code"]) == (param, "invalid_grammar")


def test_a_form_by_another_name_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    response = post(client, guided_choice=["ja"])
    assert response.status_code == 200
    assert "x-ignored-params" not in response.headers
    assert engine.requests[-1].params.grammar == GrammarSpec("choice", '["ja"]')
    post(client, response_format={"type": "json_object", "schema": SCHEMA})
    assert engine.requests[-1].params.grammar == GrammarSpec("json_schema", TEXT)
