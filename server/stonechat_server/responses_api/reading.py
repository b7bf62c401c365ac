"""Translates a request of `/v1/responses` to a chat request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stonechat_server.media.references import find_media
from stonechat_server.request.field_checks import ignored_params
from stonechat_server.request.other_names import with_own_names
from stonechat_server.responses_api.fields import FIELDS
from stonechat_server.responses_api.history import PREVIOUS
from stonechat_server.responses_api.items import AdditionalTools, Item
from stonechat_server.responses_api.messages import Conversation, to_messages
from stonechat_server.responses_api.request import (
    ENCRYPTED_REASONING,
    LOGPROBS,
    ResponsesRequest,
    SchemaFormat,
    TextOptions,
)
from stonechat_server.responses_api.tool_reading import Tools, read_tools
from stonechat_server.schema.requests import ChatCompletionRequest, Reasoning
from stonechat_server.schema.response_format import (
    JsonSchemaDefinition,
    JsonSchemaResponseFormat,
    ResponseFormat,
)
from stonechat_server.serving.endpoint import Call

TRANSLATED = frozenset({"tools", "tool_choice", "reasoning", "top_logprobs", "max_output_tokens"})
"""Fields with the name of a chat field, but of another form."""
SAME = frozenset(ResponsesRequest.model_fields) & ChatCompletionRequest.model_fields.keys()
NAMES = (
    ("messages", "input"),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
)
"""Paths in a chat request, and the paths of the same values here."""


class ResponsesChat(ChatCompletionRequest):
    """A chat request of this endpoint. The last events of its stream repeat the whole answer."""

    num_repeats = 4


@dataclass(slots=True, kw_only=True)
class ResponsesCall(Call):
    """A call, with the tools that the model may use."""

    tools: Tools
    keep: Callable[[str, bytes], bool] | None = None
    """Stores the JSON of the answer by its id, and tells whether it could. None: it is not kept."""

    def own_name(self, path: str) -> str:
        """The client has no name for what is within an earlier response."""
        name = Call.own_name(self, path)  # a class with slots has no plain super()
        return PREVIOUS if name.startswith(PREVIOUS) else name


def read(
    wire: ResponsesRequest, given: str | Sequence[Item], history: Sequence[Item] = ()
) -> ResponsesCall:
    """Translate a request. `given` is its input without references, behind the items of `history`.

    Raises `APIError` 400 for what is not supported, by its own name.
    """
    tools = read_tools(wire.tools or (), wire.tool_choice, _tool_items(given, history))
    conversation = to_messages(wire.instructions, history, given)
    chat = with_own_names(_to_chat(wire, conversation, tools))
    left_out = tuple(f"{path}." for path in tools.ignored + conversation.ignored)
    unknown = [path for path in ignored_params(wire, FIELDS) if not path.startswith(left_out)]
    ignored = unknown + conversation.ignored + tools.ignored
    has_parts = any(isinstance(message.content, list) for message in chat.messages)
    return ResponsesCall(
        request=chat,
        wire=wire,
        ignored=[*ignored, *_ignored_options(wire)],
        names=[*_names(wire), *conversation.names, *tools.paths],
        media=find_media(chat.messages) if has_parts else (),  # text alone is joined
        tools=tools,
    )


def _tool_items(
    given: str | Sequence[Item], history: Sequence[Item]
) -> list[tuple[str, AdditionalTools]]:
    """The items with tools, and their paths."""
    earlier = [(PREVIOUS, item) for item in history]
    own = [] if isinstance(given, str) else [(f"input[{i}]", item) for i, item in enumerate(given)]
    return [(path, item) for path, item in earlier + own if isinstance(item, AdditionalTools)]


def _to_chat(
    wire: ResponsesRequest, conversation: Conversation, tools: Tools
) -> ChatCompletionRequest:
    values: dict[str, Any] = {
        name: getattr(wire, name) for name in (SAME - TRANSLATED) & wire.model_fields_set
    }
    if tools.tools:
        values["tools"] = tools.tools
    if tools.choice is not None:
        values["tool_choice"] = tools.choice
    if wire.max_output_tokens is not None:
        values["max_output_tokens"] = wire.max_output_tokens
    if wire.text is not None and wire.text.format is not None:
        values["response_format"] = _to_response_format(wire.text)
    if wire.reasoning is not None:
        options = wire.reasoning.model_dump(
            include={"effort", "max_tokens", "enabled"}, exclude_unset=True
        )
        values["reasoning"] = Reasoning(**options)
    if wire.has_logprobs:
        values["logprobs"], values["top_logprobs"] = True, wire.top_logprobs or 0
    return ResponsesChat.model_construct(messages=conversation.messages, **values)


def _to_response_format(text: TextOptions) -> ResponseFormat | None:
    given = text.format
    if not isinstance(given, SchemaFormat):
        return given
    values: dict[str, Any] = {"schema": given.json_schema}  # the field's alias
    definition = JsonSchemaDefinition(
        name=given.name, description=given.description, strict=given.strict, **values
    )
    return JsonSchemaResponseFormat(type="json_schema", json_schema=definition)


def _names(wire: ResponsesRequest) -> Iterator[tuple[str, str]]:
    """`NAMES`, without those of fields that the client has set under their chat names."""
    for old, new in NAMES:
        if old not in wire.model_fields_set:
            yield old, new
    options = wire.reasoning
    if options is not None and options.max_tokens is not None and wire.thinking_budget is None:
        yield "thinking_budget", "reasoning.max_tokens"
    if wire.max_completion_tokens is None:
        given = wire.max_output_tokens is None and wire.max_tokens is not None
        yield "max_completion_tokens", "max_tokens" if given else "max_output_tokens"
    if wire.max_output_tokens is not None:
        yield "max_tokens", "max_output_tokens"


def _ignored_options(wire: ResponsesRequest) -> Iterator[str]:
    """Paths of options without effect inside fields that have one."""
    if wire.text is not None and wire.text.verbosity not in (None, "medium"):
        yield "text.verbosity"
    if wire.reasoning is not None:
        if wire.reasoning.context not in (None, "auto"):
            yield "reasoning.context"
        if wire.reasoning.mode not in (None, "standard"):
            yield "reasoning.mode"
    for i, value in enumerate(wire.include or ()):
        if value not in (LOGPROBS, ENCRYPTED_REASONING):
            yield f"include[{i}]"
    options = wire.stream_options
    if options is not None:
        if options.include_usage is not None:
            yield "stream_options.include_usage"
        if options.continuous_usage_stats:
            yield "stream_options.continuous_usage_stats"
