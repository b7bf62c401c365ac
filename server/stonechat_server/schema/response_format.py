"""The form that an answer must have."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import ListOf, Name, WireModel

SchemaText = dict[str, Any] | str
"""A JSON schema, or its JSON text."""


class TextResponseFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectResponseFormat(WireModel):
    """Any JSON object, or JSON that validates against `schema` (also called `value`)."""

    type: Literal["json_object"]
    json_schema: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    value: dict[str, Any] | None = None


class JsonSchemaDefinition(WireModel):
    """A named JSON schema."""

    name: Name
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaResponseFormat(WireModel):
    """JSON that validates against a schema: of `json_schema`, or directly under `schema`."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaDefinition | None = None
    direct_schema: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None


ResponseFormat = Annotated[
    TextResponseFormat | JsonObjectResponseFormat | JsonSchemaResponseFormat,
    Field(discriminator="type"),
]


class StructuredOutputs(WireModel):
    """An extension: exactly one of these forms. `grammar` is in Lark's notation."""

    json_value: Annotated[SchemaText | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[ListOf[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
