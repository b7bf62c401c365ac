"""Reads the form of the final answer from `response_format` or `structured_outputs`."""

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
    """The grammar enforces the form; `instruction` describes it to the model.

    `param` is the request field that an error names.
    """

    grammar: GrammarSpec
    instruction: str | None
    param: str


def answer_form(request: ChatCompletionRequest) -> AnswerForm | None:
    """Return the form that the request sets, or None for any text.

    Raises `APIError` 400 if the request sets two forms, or a schema that is not valid JSON.
    """
    outputs = request.structured_outputs
    response_format = request.response_format
    is_structured = outputs is not None and bool(outputs.model_fields_set)
    if (
        isinstance(response_format, JsonObjectResponseFormat | JsonSchemaResponseFormat)
        and is_structured
    ):
        raise invalid(
            "structured_outputs", "response_format and structured_outputs cannot both be given."
        )
    if is_structured and outputs is not None:
        return _from_outputs(outputs)
    if isinstance(response_format, JsonObjectResponseFormat):
        return AnswerForm(
            grammar=GrammarSpec("json_schema", JSON_OBJECT),
            instruction=ANY_OBJECT,
            param="response_format",
        )
    if isinstance(response_format, JsonSchemaResponseFormat):
        return _from_definition(response_format.json_schema)
    return None


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
    }
    names = [name for name, value in values.items() if value is not None]
    if len(names) != 1:
        raise invalid(
            "structured_outputs",
            f"structured_outputs takes exactly one of {', '.join(values)}.",
        )
    param = f"structured_outputs.{names[0]}"
    if outputs.json_value is not None:
        return _json_form(_load_schema(outputs.json_value, param), param)
    if outputs.choice is not None:
        source = json.dumps(outputs.choice, ensure_ascii=False)
        instruction = f"Answer with exactly one of these texts and nothing else: {source}"
        return AnswerForm(
            grammar=GrammarSpec("choice", source), instruction=instruction, param=param
        )
    if outputs.regex is not None:
        grammar = GrammarSpec("regex", outputs.regex)
    else:
        grammar = GrammarSpec("lark", outputs.grammar or "")
    return AnswerForm(grammar=grammar, instruction=None, param=param)


def _load_schema(value: object, param: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return load_json(value)
    except ValueError as error:
        raise invalid(param, f"The JSON schema is not valid JSON: {error}") from error
