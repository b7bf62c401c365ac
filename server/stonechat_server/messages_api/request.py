"""The bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.messages_api.blocks import Message, TextBlock
from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.requests import Effort
from stonechat_server.schema.sampling_fields import (
    Budget,
    Count,
    GenerationOptions,
    MinusOne,
    StopString,
    Whole,
)
from stonechat_server.schema.tools import ArgumentsSchema

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Metadata(WireModel):
    """Who the request is for."""

    user_id: str | None = None


class Tool(WireModel):
    """A tool that the client runs. Any other `type` is one that this server does not know."""

    type: str | None = None
    name: ToolName | None = None
    description: str | None = None
    input_schema: ArgumentsSchema | None = None
    strict: bool | None = None
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    """Arguments are streamed as they are written in any case."""


class ToolChoice(WireModel):
    """Which tools may or must be called. `name` is for the type `tool`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(WireModel):
    """The switch of reasoning. `omitted` hides its text: the block then has a signature only."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Budget | None = None
    display: Literal["summarized", "omitted", "updates"] | None = None


class OutputFormat(WireModel):
    """A JSON schema that the answer must follow."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(WireModel):
    """How much to think, and the form of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class MessagesFields(GenerationOptions):
    """What both endpoints take. Most options of generation are extensions."""

    model: str | None = None
    messages: Annotated[ListOf[Message], Field(min_length=1)]
    system: str | ListOf[TextBlock] | None = None

    stop_sequences: Annotated[list[StopString], Field(max_length=64)] | None = None
    stream: bool | None = None

    tools: ListOf[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None

    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    container: Any = None
    mcp_servers: list[Any] | None = None
    compaction: Any = None
    thread: Any = None
    fallbacks: Any = None
    fallback_credit_token: Any = None
    billing_policy: Any = None
    diagnostics: Any = None
    inference_geo: str | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    betas: ListOf[str] | None = None

    # More extensions, with the names that chat completions give them.
    reasoning_effort: Effort | None = None
    thinking_budget: Budget | None = None
    documents: ListOf[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Fields of chat completions that an answer of this shape cannot show.
    n: Whole | None = None
    logprobs: bool | Whole | None = None
    top_logprobs: Whole | None = None
    response_format: Any = None


class MessagesRequest(MessagesFields):
    """A conversation to continue."""

    max_tokens: Count | MinusOne


class CountTokensRequest(MessagesFields):
    """A conversation whose tokens are counted."""

    max_tokens: Count | MinusOne | None = None
