"""Translates a request to a chat request. Checks first what is refused here."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.messages_api.blocks import AssistantMessage as AssistantTurn
from stonechat_server.messages_api.blocks import RedactedThinkingBlock, ThinkingBlock
from stonechat_server.messages_api.conversation import ImagePaths, to_chat_messages
from stonechat_server.messages_api.fields import EXTENSIONS, FIELDS
from stonechat_server.messages_api.marks import is_foreign
from stonechat_server.messages_api.request import MessagesFields, Tool, ToolChoice
from stonechat_server.request.field_checks import MAX_IGNORED, asked_for, ignored_params
from stonechat_server.request.other_names import with_own_names
from stonechat_server.schema.fields import FORM_FIELDS, UNSUPPORTED_FORMS, FieldStatus
from stonechat_server.schema.messages import AssistantMessage
from stonechat_server.schema.messages import Message as ChatMessage
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.requests import Thinking as ChatThinking
from stonechat_server.schema.response_format import JsonSchemaResponseFormat
from stonechat_server.schema.tools import (
    FunctionChoice,
    FunctionDefinition,
    FunctionTool,
    NamedTool,
)

FORM_NAMES = FORM_FIELDS | {path.partition(".")[0] for path in UNSUPPORTED_FORMS}
"""Unknown names that ask for a form of the answer. They are refused, as text would be wrong."""
NO_THREADS = "thread_unsupported_request"
"""The code by which Anthropic's clients know that they must send whole conversations."""
CHAT_CHOICES = {"auto": "auto", "any": "required", "none": "none"}

NAMES = (
    ("response_format.schema", "output_config.format.schema"),
    ("response_format", "output_config.format"),
    ("reasoning_effort", "output_config.effort"),
    ("thinking_budget", "thinking.budget_tokens"),
    ("stop", "stop_sequences"),
    ("tool_choice.function", "tool_choice"),
)
"""Pairs of paths: of a value in the chat request, and of the same value in the client's body."""


def to_chat(wire: MessagesFields, paths: ImagePaths) -> ChatCompletionRequest:
    """Translate a request. Its images are noted in `paths`.

    Raises `APIError` 400 for what is not supported.
    """
    _check_supported(wire)
    given = wire.model_fields_set
    values: dict[str, Any] = {name: getattr(wire, name) for name in EXTENSIONS if name in given}
    messages = to_chat_messages(wire.system, wire.messages, paths)
    values |= {
        "model": wire.model,
        "messages": messages,
        "max_tokens": getattr(wire, "max_tokens", None),
        "temperature": wire.temperature,
        "top_p": wire.top_p,
        "top_k": wire.top_k,
        "stop": wire.stop_sequences or None,
        "stream": wire.stream,
        "user": wire.metadata.user_id if wire.metadata else None,
        "tools": [_tool(tool, f"tools[{i}]") for i, tool in enumerate(wire.tools or ())] or None,
        "response_format": _form(wire),
        **_tool_choice(wire.tool_choice),
        **_reasoning(wire),
    }
    if _is_prefill(messages[-1]):
        values |= {"continue_final_message": True, "add_generation_prompt": False}
    values = {name: value for name, value in values.items() if value is not None}
    return with_own_names(ChatCompletionRequest.model_construct(**values))


def names(wire: MessagesFields) -> list[tuple[str, str]]:
    """Paths in the chat request, and those of the same values in the client's body."""
    tools = [(f"tools[{i}].function", f"tools[{i}]") for i in range(len(wire.tools or ()))]
    schemas = [(f"{old}.parameters", f"{new}.input_schema") for old, new in tools]
    own = {name for name in EXTENSIONS if name in wire.model_fields_set}
    renamed = [(old, new) for old, new in NAMES if old not in own]
    if wire.output_format is not None:
        renamed = [
            (old, new.replace("output_config.format", "output_format")) for old, new in renamed
        ]
    return [*renamed, *schemas, *tools]


def ignored(wire: MessagesFields) -> list[str]:
    """Paths of what is set but changes nothing."""
    paths = ignored_params(wire, FIELDS)
    if _effort(wire) is not None and _is_disabled(wire):
        paths.append("output_config.effort")
    return [*paths, *islice(_unreadable(wire), MAX_IGNORED)]


def _unreadable(wire: MessagesFields) -> Iterator[str]:
    """Paths of reasoning that only another service can read."""
    for i, message in enumerate(wire.messages):
        if not isinstance(message, AssistantTurn) or isinstance(message.content, str):
            continue
        for j, block in enumerate(message.content):
            path = f"messages[{i}].content[{j}]"
            if isinstance(block, RedactedThinkingBlock):
                yield f"{path}.data"
            elif isinstance(block, ThinkingBlock) and is_foreign(block):
                yield f"{path}.signature"


def _check_supported(wire: MessagesFields) -> None:
    for name in asked_for(wire, FIELDS, FieldStatus.REJECTED):
        error = unsupported(name, f"'{name}' is not supported here ({FIELDS[name].note}).")
        error.code = NO_THREADS if name == "thread" else error.code
        raise error
    for name, value in (wire.model_extra or {}).items():
        if name in FORM_NAMES and value is not None:
            raise unsupported(name, f"'{name}' is not supported here; use output_config.format.")


def _tool(tool: Tool, where: str) -> FunctionTool:
    if tool.type not in (None, "custom"):
        path = f"{where}.type"
        message = f"'{path}': '{tool.type[:64]}' is a tool of Anthropic's own, not served here."
        raise unsupported(path, message)
    for name in ("name", "input_schema"):
        if getattr(tool, name) is None:
            raise _missing(f"{where}.{name}")
    values: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    values |= {"description": tool.description} if tool.description is not None else {}
    values |= {"strict": tool.strict} if tool.strict is not None else {}
    function = FunctionDefinition.model_construct(**values)
    return FunctionTool.model_construct(type="function", function=function)


def _tool_choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    values: dict[str, Any] = {"tool_choice": CHAT_CHOICES.get(choice.type)}
    if choice.type == "tool":
        if choice.name is None:
            raise _missing("tool_choice.name")
        function = NamedTool(name=choice.name)
        values["tool_choice"] = FunctionChoice(type="function", function=function)
    if choice.disable_parallel_tool_use:
        values["parallel_tool_calls"] = False
    return values


def _reasoning(wire: MessagesFields) -> dict[str, Any]:
    """The switch, the budget and the effort. The effort alone does not switch reasoning on."""
    thinking, effort = wire.thinking, _effort(wire)
    values: dict[str, Any] = {}
    if thinking is not None:
        budget = thinking.budget_tokens
        values["thinking"] = ChatThinking(type=thinking.type, budget_tokens=budget)
    if effort is not None and not _is_disabled(wire):
        if wire.reasoning_effort not in (None, effort):
            raise _contradiction("reasoning_effort", "output_config.effort")
        if thinking is not None or wire.reasoning_effort is not None:
            values["reasoning_effort"] = effort
        else:
            variables = {"reasoning_effort": effort, "reasoning_strength": effort}
            values["chat_template_kwargs"] = variables | (wire.chat_template_kwargs or {})
    return values


def _effort(wire: MessagesFields) -> str | None:
    return wire.output_config.effort if wire.output_config is not None else None


def _is_disabled(wire: MessagesFields) -> bool:
    return wire.thinking is not None and wire.thinking.type == "disabled"


def _form(wire: MessagesFields) -> JsonSchemaResponseFormat | None:
    formats = [wire.output_config.format if wire.output_config else None, wire.output_format]
    schemas = [format.json_schema for format in formats if format is not None]
    if not schemas:
        return None
    if schemas[0] != schemas[-1]:
        raise _contradiction("output_format", "output_config.format")
    return JsonSchemaResponseFormat.model_validate({"type": "json_schema", "schema": schemas[0]})


def _is_prefill(last: ChatMessage) -> bool:
    return isinstance(last, AssistantMessage) and bool(last.content) and not last.tool_calls


def _contradiction(path: str, other: str) -> APIError:
    return invalid(path, f"'{path}' and '{other}' set the same option to different values.")


def _missing(path: str) -> APIError:
    return invalid(
        path, f"Missing required parameter: '{path}'.", code="missing_required_parameter"
    )
