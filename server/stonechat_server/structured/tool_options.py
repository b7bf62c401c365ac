"""Reads which tools a request offers, and which of them may or must be called."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import (
    AllowedToolsChoice,
    CustomChoice,
    CustomTool,
    FunctionChoice,
    FunctionTool,
    Tool,
)

MAX_TOOLS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOptions:
    """The model is shown the `offered` tools; the grammar allows calls of the `callable` tools."""

    offered: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    is_required: bool
    is_parallel: bool

    @property
    def functions(self) -> list[FunctionTool]:
        return [tool for tool in self.callable if isinstance(tool, FunctionTool)]

    @property
    def customs(self) -> list[CustomTool]:
        return [tool for tool in self.callable if isinstance(tool, CustomTool)]


NO_TOOLS = ToolOptions(offered=(), callable=(), is_required=False, is_parallel=True)


def read_tool_options(request: ChatCompletionRequest) -> ToolOptions | None:
    """Return the tools of a request, or None if no tool may be called.

    Raises `APIError` 400 for invalid tools, and for a choice that does not fit the tools.
    """
    tools = _distinct_tools(request)
    choice = request.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "tool_choice is only allowed when tools are given.")
        return None
    if choice == "none":
        return None
    offered = callable_ = tools
    is_required = choice == "required"
    is_parallel = request.parallel_tool_calls is not False
    if isinstance(choice, FunctionChoice | CustomChoice):
        offered = callable_ = (_find(tools, choice, choice_path(request, choice)),)
        is_required, is_parallel = True, False
    elif isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        callable_ = tuple(
            _find(tools, reference, f"tool_choice.allowed_tools.tools[{i}].{reference.type}")
            for i, reference in enumerate(allowed.tools)
        )
        callable_ = tuple(tool for tool in tools if tool in callable_)
        is_required = allowed.mode == "required"
    return ToolOptions(
        offered=offered, callable=callable_, is_required=is_required, is_parallel=is_parallel
    )


def tool_name(tool: Tool) -> str:
    """The name by which the model calls the tool."""
    return tool.function.name if isinstance(tool, FunctionTool) else tool.custom.name


def parameters(tool: FunctionTool) -> dict[str, Any]:
    """The JSON schema of a function's arguments. A function without a schema has no arguments."""
    schema = tool.function.parameters
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return schema if schema.get("type") is not None else {**schema, "type": "object"}


def allows_objects(schema: dict[str, Any]) -> bool:
    """Whether the type that a schema gives, if any, is or includes `object`."""
    types = schema.get("type")
    return types is None or "object" in (types if isinstance(types, list) else [types])


def tool_path(request: ChatCompletionRequest, index: int) -> str:
    """The path of a tool's definition in the request body."""
    if request.functions is not None:
        return f"functions[{index}]"
    tool = (request.tools or ())[index]
    return f"tools[{index}].{tool.type}"


def choice_path(request: ChatCompletionRequest, choice: FunctionChoice | CustomChoice) -> str:
    """The path in the request body of the object that names the one chosen tool."""
    return "function_call" if request.functions is not None else f"tool_choice.{choice.type}"


def _distinct_tools(request: ChatCompletionRequest) -> tuple[Tool, ...]:
    """The tools of a request. One that is there twice, with nothing different, is one tool."""
    tools = request.tools or ()
    if len(tools) > MAX_TOOLS:
        raise invalid("tools", f"At most {MAX_TOOLS} tools are allowed.")
    found: dict[str, Tool] = {}
    for i, tool in enumerate(tools):
        name = tool_name(tool)
        if found.setdefault(name, tool) != tool:
            message = f"There are two tools named '{name}', and they differ."
            raise invalid(f"{tool_path(request, i)}.name", message)
        if not isinstance(tool, FunctionTool) or tool.function.strict is not True:
            continue
        if not allows_objects(parameters(tool)):
            raise invalid(
                f"{tool_path(request, i)}.parameters",
                "The parameters of a function must be a JSON schema of type object.",
            )
    return tuple(found.values())


def _find(tools: Sequence[Tool], reference: FunctionChoice | CustomChoice, where: str) -> Tool:
    is_function = isinstance(reference, FunctionChoice)
    name = (
        reference.function.name
        if isinstance(reference, FunctionChoice)
        else (reference.custom.name)
    )
    for tool in tools:
        if isinstance(tool, FunctionTool) is is_function and tool_name(tool) == name:
            return tool
    kind = "function" if is_function else "custom"
    raise invalid(f"{where}.name", f"There is no {kind} tool named '{name[:64]}'.")
