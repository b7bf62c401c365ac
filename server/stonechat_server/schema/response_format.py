"""The form that an answer must have."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import Name, WireModel


class TextResponseFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectResponseFormat(WireModel):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaDefinition(WireModel):
    """A named JSON schema."""

    name: Name
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaResponseFormat(WireModel):
    """JSON that validates against a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaDefinition


ResponseFormat = Annotated[
    TextResponseFormat | JsonObjectResponseFormat | JsonSchemaResponseFormat,
    Field(discriminator="type"),
]


class StructuredOutputs(WireModel):
    """An extension: exactly one of a JSON schema, a regex, a list of choices, or a Lark grammar."""

    json_value: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
