"""Reads the form of the final answer: `response_format`, `structured_outputs`, or another name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from stonechat_models import GrammarSpec
from stonechat_server.errors import APIError, invalid
from stonechat_server.parsers.json_text import load_json
from stonechat_server.schema.fields import FIELDS, FORM_FIELDS, FORM_PREFIX
from stonechat_server.schema.response_format import (
    JsonObjectResponseFormat,
    JsonSchemaDefinition,
    JsonSchemaResponseFormat,
    ResponseFormat,
    StructuredOutputs,
)
from stonechat_server.schema.sampling_fields import SamplingFields

JSON_OBJECT = '{"type": "object"}'
ANY_OBJECT = "Answer with a JSON object and nothing else."
# The definition of a rule in GBNF (llama.cpp) and EBNF. Lark has a single colon.
GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """The grammar enforces the form; `instruction` describes it to the model.

    `param` is the request field that an error names.
    """

    grammar: GrammarSpec
    instruction: str | None
    param: str


def answer_form(request: SamplingFields) -> AnswerForm | None:
    """Return the form that the request sets, or None for any text.

    Raises `APIError` 400 if the request sets two forms, a schema that is not valid JSON, or a
    grammar in a notation other than Lark.
    """
    forms = list(_forms(request))
    for form in forms[1:]:
        if form.grammar != forms[0].grammar:
            raise _two_forms(forms[0].param, form.param)
    return forms[0] if forms else None


def _two_forms(first: str, second: str) -> APIError:
    fields = [path.partition(".")[0] for path in (first, second)]
    if fields[0] != fields[1]:
        first, second = fields
    return invalid(second, f"{first} and {second} cannot both be given.")


def _forms(request: SamplingFields) -> Iterator[AnswerForm]:
    if request.response_format is not None:
        yield from _from_response_format(request.response_format)
    outputs = request.structured_outputs
    if outputs is not None and outputs.model_fields_set:
        yield _from_outputs(outputs)
    for name in sorted(FORM_FIELDS & request.model_fields_set):
        value = getattr(request, name)
        if value is None or value == "":
            continue
        kind = FIELDS[name].alias_of.removeprefix(FORM_PREFIX) or "json"
        is_any = name == "format" and value == "json"
        yield _from_value("json_object" if is_any else kind, value, name)


def _from_response_format(response_format: ResponseFormat) -> Iterator[AnswerForm]:
    if isinstance(response_format, JsonObjectResponseFormat):
        yield from _object_forms(response_format)
    elif isinstance(response_format, JsonSchemaResponseFormat):
        yield from _schema_forms(response_format)


def _object_forms(response_format: JsonObjectResponseFormat) -> Iterator[AnswerForm]:
    if (response_format.model_extra or {}).get("json_schema") is not None:
        param = "response_format.json_schema"
        raise invalid(param, "json_schema needs the type json_schema; json_object has schema.")
    schemas = {"schema": response_format.json_schema, "value": response_format.value}
    forms = [
        _json_form(schema, f"response_format.{key}") for key, schema in schemas.items() if schema
    ]
    yield from forms or [_json_object("response_format")]


def _schema_forms(response_format: JsonSchemaResponseFormat) -> Iterator[AnswerForm]:
    definition, direct = response_format.json_schema, response_format.direct_schema
    if definition is None and direct is None:
        param = "response_format.json_schema"
        message = f"Missing required parameter: '{param}'."
        raise invalid(param, message, code="missing_required_parameter")
    if definition is not None:
        yield _from_definition(definition)
    if direct is not None:
        yield _json_form(direct, "response_format.schema")


def _json_object(param: str) -> AnswerForm:
    grammar = GrammarSpec("json_schema", JSON_OBJECT)
    return AnswerForm(grammar=grammar, instruction=ANY_OBJECT, param=param)


def _from_definition(definition: JsonSchemaDefinition) -> AnswerForm:
    param = "response_format.json_schema.schema"
    schema = definition.json_schema
    if schema is None:
        schema = json.loads(JSON_OBJECT)
    description = f" ({definition.description})" if definition.description else ""
    return _json_form(schema, param, f" '{definition.name}'{description}")


def _json_form(schema: object, param: str, name: str = "") -> AnswerForm:
    text = json.dumps(schema, ensure_ascii=False)
    return AnswerForm(
        grammar=GrammarSpec("json_schema", text),
        instruction=f"Answer with JSON and nothing else. It must follow this JSON schema{name}:\n"
        + text,
        param=param,
    )


def _from_outputs(outputs: StructuredOutputs) -> AnswerForm:
    values = {
        "json": outputs.json_value,
        "regex": outputs.regex,
        "choice": outputs.choice,
        "grammar": outputs.grammar,
        "json_object": outputs.json_object or None,
    }
    names = [name for name, value in values.items() if value is not None]
    if len(names) != 1 or (outputs.model_extra or {}).get("structural_tag") is not None:
        raise invalid(
            "structured_outputs", f"structured_outputs takes exactly one of {', '.join(values)}."
        )
    return _from_value(names[0], values[names[0]], f"structured_outputs.{names[0]}")


def _from_value(kind: str, value: object, param: str) -> AnswerForm:
    """The form that `structured_outputs` would have with `value` under `kind`."""
    if kind == "json":
        schema = _load_schema(value, param)
        if isinstance(schema, dict) and "name" in schema and isinstance(schema.get("schema"), dict):
            return _json_form(schema["schema"], f"{param}.schema")  # as in `response_format`
        return _json_form(schema, param)
    if kind == "json_object":
        return _json_object(param)
    if kind == "choice":
        source = json.dumps(value, ensure_ascii=False)
        instruction = f"Answer with exactly one of these texts and nothing else: {source}"
        return AnswerForm(
            grammar=GrammarSpec("choice", source), instruction=instruction, param=param
        )
    if kind == "grammar" and GBNF_RULE.search(str(value)):
        raise invalid(
            param,
            f"'{param}' is in GBNF or EBNF, which is not supported here. Write it in Lark's "
            'notation (\'start: "yes" | "no"\'), or use a JSON schema or a regex.',
            code="invalid_grammar",
        )
    grammar = GrammarSpec("regex" if kind == "regex" else "lark", str(value))
    return AnswerForm(grammar=grammar, instruction=None, param=param)


def _load_schema(value: object, param: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except ValueError as error:
        raise invalid(param, f"The JSON schema is not valid JSON: {error}") from error
