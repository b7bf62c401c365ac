"""The tools that a model may call, and how a client restricts the choice among them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stonechat_server.schema.base import ListOf, Name, WireModel


def _as_object(schema: object) -> object:
    """Write a JSON schema that is a boolean as an object with the same meaning.

    PHP writes an empty map as `[]`, and Go a missing one as null: then there are no arguments.
    """
    if schema == []:
        return {"type": "object", "properties": {}}
    if isinstance(schema, dict) and schema.get("properties", {}) in (None, []):
        return {**schema, "properties": {}}
    if schema is True:
        return {"type": "object"}
    return {"type": "object", "not": {}} if schema is False else schema


ArgumentsSchema = Annotated[dict[str, Any], BeforeValidator(_as_object)]
"""A JSON schema of a function's arguments."""


class FunctionDefinition(WireModel):
    """A function: its name, its purpose, and a JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: ArgumentsSchema | None = None
    strict: bool | None = None


class FunctionTool(WireModel):
    """A tool that takes JSON arguments."""

    type: Literal["function"]
    function: FunctionDefinition


class TextFormat(WireModel):
    """Any text."""

    type: Literal["text"]


class GrammarDefinition(WireModel):
    """A grammar in one of two notations."""

    definition: str
    syntax: Literal["lark", "regex"]


class GrammarFormat(WireModel):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    grammar: GrammarDefinition


class CustomDefinition(WireModel):
    """A tool with free-form input, or input that follows a grammar."""

    name: Name
    description: str | None = None
    format: Annotated[TextFormat | GrammarFormat, Field(discriminator="type")] | None = None


class CustomTool(WireModel):
    """A tool that takes text."""

    type: Literal["custom"]
    custom: CustomDefinition


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class NamedTool(WireModel):
    """The name of a tool."""

    name: str


class FunctionChoice(WireModel):
    """Call this function."""

    type: Literal["function"]
    function: NamedTool


class CustomChoice(WireModel):
    """Call this custom tool."""

    type: Literal["custom"]
    custom: NamedTool


ToolReference = Annotated[FunctionChoice | CustomChoice, Field(discriminator="type")]


class AllowedTools(WireModel):
    """Choose among these tools only."""

    mode: Literal["auto", "required"]
    tools: Annotated[ListOf[ToolReference], Field(min_length=1)]


class AllowedToolsChoice(WireModel):
    """Restrict the choice to some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


NamedToolChoice = Annotated[
    FunctionChoice | CustomChoice | AllowedToolsChoice, Field(discriminator="type")
]
ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
