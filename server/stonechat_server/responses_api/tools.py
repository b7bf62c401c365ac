"""The tools of a request, in the flat form of this endpoint, and the choice among them."""

from hashlib import sha256
from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import ListOf, Name, WireModel
from stonechat_server.schema.tools import FunctionDefinition, TextFormat
from stonechat_server.structured.tool_options import MAX_TOOLS

SearchKind = Literal[
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"
]
HostedKind = Literal[
    "file_search",
    "computer",
    "computer_use",
    "computer_use_preview",
    "mcp",
    "code_interpreter",
    "image_generation",
    "local_shell",
    "shell",
    "apply_patch",
    "programmatic_tool_calling",
]
"""Tools that the server would run."""


class Function(FunctionDefinition):
    """A tool that takes JSON arguments."""

    type: Literal["function"]


class Grammar(WireModel):
    """Text that follows a grammar."""

    type: Literal["grammar"]
    definition: str
    syntax: Literal["lark", "regex"]


class Custom(WireModel):
    """A tool that takes text."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: Annotated[TextFormat | Grammar, Field(discriminator="type")] | None = None


ClientTool = Annotated[Function | Custom, Field(discriminator="type")]


class Namespace(WireModel):
    """A group of tools. Calls name it beside the tool."""

    type: Literal["namespace"]
    name: Name
    description: str | None = None
    tools: ListOf[ClientTool]


class WebSearch(WireModel):
    """The hosted search."""

    type: SearchKind
    external_web_access: bool | None = None


class ToolSearch(WireModel):
    """The search for tools that a request does not list. A client may run it by itself."""

    type: Literal["tool_search"]
    execution: Literal["server", "client"] | None = None


class HostedTool(WireModel):
    """A tool that the server would run: refused."""

    type: HostedKind


ToolParam = Annotated[
    Function | Custom | Namespace | WebSearch | ToolSearch | HostedTool, Field(discriminator="type")
]


class NamedChoice(WireModel):
    """Call this tool."""

    type: Literal["function", "custom"]
    name: str


class AllowedTools(WireModel):
    """Choose among these tools only."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[ListOf["Choice"], Field(min_length=1, max_length=MAX_TOOLS)]


class HostedChoice(WireModel):
    """Call a tool that the server would run: refused."""

    type: HostedKind | SearchKind | Literal["tool_search"]


Choice = Annotated[NamedChoice | HostedChoice, Field(discriminator="type")]
ToolChoice = (
    Literal["none", "auto", "required"]
    | Annotated[NamedChoice | AllowedTools | HostedChoice, Field(discriminator="type")]
)


def dumped(value: object) -> Any:
    """A value as the client sent it."""
    if isinstance(value, WireModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return value


SEPARATOR = "__"
MAX_NAME_LENGTH = 64
HASH_LENGTH = 8


def joined_name(namespace: str | None, name: str) -> str:
    """The name that the model sees: the tool's own, or one with its namespace before it.

    In a name that would be too long, a hash ends the namespace.
    """
    if not namespace:
        return name
    joined = f"{namespace}{SEPARATOR}{name}"
    if len(joined) <= MAX_NAME_LENGTH:
        return joined
    suffix = f"{sha256(joined.encode()).hexdigest()[:HASH_LENGTH]}{SEPARATOR}{name}"
    return (namespace[: max(0, MAX_NAME_LENGTH - len(suffix))] + suffix)[:MAX_NAME_LENGTH]
