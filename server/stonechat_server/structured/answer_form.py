"""The form that a final answer must have, from `response_format` or `structured_outputs`."""

import json
from dataclasses import dataclass

from stonechat_models import GrammarSpec
from stonechat_server.errors import invalid
from stonechat_server.parsers.json_text import load_json
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.response_format import (
    JsonObjectResponseFormat,
    JsonSchemaDefinition,
    JsonSchemaResponseFormat,
    StructuredOutputs,
)

JSON_OBJECT = '{"type": "object"}'
ANY_OBJECT = "Answer with a JSON object and nothing else."


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """`instruction` tells the model; the grammar makes sure. `param`: whom an error concerns."""

    grammar: GrammarSpec
    instruction: str | None
    param: str


def answer_form(request: ChatCompletionRequest) -> AnswerForm | None:
    """None: any text. Raises `APIError` 400 where the request asks for two things at once."""
    given = request.structured_outputs
    wanted = request.response_format
    is_structured = given is not None and bool(given.model_fields_set)
    if isinstance(wanted, JsonObjectResponseFormat | JsonSchemaResponseFormat) and is_structured:
        raise invalid(
            "structured_outputs", "response_format and structured_outputs cannot both be given."
        )
    if is_structured and given is not None:
        return _structured(given)
    if isinstance(wanted, JsonObjectResponseFormat):
        return AnswerForm(
            grammar=GrammarSpec("json_schema", JSON_OBJECT),
            instruction=ANY_OBJECT,
            param="response_format",
        )
    if isinstance(wanted, JsonSchemaResponseFormat):
        return _from_definition(wanted.json_schema)
    return None


def _from_definition(definition: JsonSchemaDefinition) -> AnswerForm:
    param = "response_format.json_schema.schema"
    schema = definition.json_schema
    if schema is None:
        schema = json.loads(JSON_OBJECT)
    about = f" ({definition.description})" if definition.description else ""
    return _json_form(schema, param, f" '{definition.name}'{about}")


def _json_form(schema: object, param: str, name: str = "") -> AnswerForm:
    text = json.dumps(schema, ensure_ascii=False)
    return AnswerForm(
        grammar=GrammarSpec("json_schema", text),
        instruction=f"Answer with JSON and nothing else. It must follow this JSON schema{name}:\n"
        + text,
        param=param,
    )


def _structured(given: StructuredOutputs) -> AnswerForm:
    values = {
        "json": given.json_value,
        "regex": given.regex,
        "choice": given.choice,
        "grammar": given.grammar,
    }
    chosen = [name for name, value in values.items() if value is not None]
    if len(chosen) != 1:
        raise invalid(
            "structured_outputs",
            f"structured_outputs takes exactly one of {', '.join(values)}.",
        )
    param = f"structured_outputs.{chosen[0]}"
    if given.json_value is not None:
        return _json_form(_parsed(given.json_value, param), param)
    if given.choice is not None:
        source = json.dumps(given.choice, ensure_ascii=False)
        instruction = f"Answer with exactly one of these texts and nothing else: {source}"
        return AnswerForm(
            grammar=GrammarSpec("choice", source), instruction=instruction, param=param
        )
    if given.regex is not None:
        grammar = GrammarSpec("regex", given.regex)
    else:
        grammar = GrammarSpec("lark", given.grammar or "")
    return AnswerForm(grammar=grammar, instruction=None, param=param)


def _parsed(value: object, param: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except ValueError as error:
        raise invalid(param, f"The JSON schema is not valid JSON: {error}") from error
