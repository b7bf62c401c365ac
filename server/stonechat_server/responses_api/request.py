"""The body of `POST /v1/responses`. `fields.py` says what each field does."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.responses_api.items import Item
from stonechat_server.responses_api.tools import ToolChoice, ToolParam
from stonechat_server.schema.base import ListOf, Name, WireModel
from stonechat_server.schema.requests import ConversationFields, Effort
from stonechat_server.schema.response_format import JsonObjectResponseFormat, TextResponseFormat
from stonechat_server.schema.sampling_fields import Budget, Whole

Summary = Literal["auto", "concise", "detailed"]


class SchemaFormat(WireModel):
    """JSON that validates against a schema."""

    type: Literal["json_schema"]
    name: Name
    json_schema: Annotated[dict[str, Any] | bool, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(WireModel):
    """The form of the answer's text."""

    format: (
        Annotated[
            TextResponseFormat | JsonObjectResponseFormat | SchemaFormat,
            Field(discriminator="type"),
        ]
        | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(WireModel):
    """How much the model reasons, and in which part of a reasoning item the text comes."""

    effort: Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    context: str | None = None
    mode: str | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None


class ResponsesRequest(ConversationFields):
    """Items to continue, and the options for doing so."""

    input: str | ListOf[Item] | None = None
    instructions: str | None = None

    tools: ListOf[ToolParam] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Whole | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: ListOf[str] | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    context_management: ListOf[dict[str, Any]] | None = None
    moderation: dict[str, Any] | None = None
    client_metadata: dict[str, Any] | None = None
    access_programs: Any = None
    background_options: Any = None
    image: Any = None

    @property
    def includes(self) -> frozenset[str]:
        """What the answer has beside its usual fields."""
        return frozenset(self.include or ())

    @property
    def has_logprobs(self) -> bool:
        """Whether the answer's text has log-probabilities."""
        return LOGPROBS in self.includes or bool(self.top_logprobs)

    @property
    def wants_summary(self) -> bool:
        """Whether reasoning comes as a summary."""
        options = self.reasoning
        return options is not None and (options.summary or options.generate_summary) is not None


LOGPROBS = "message.output_text.logprobs"
ENCRYPTED_REASONING = "reasoning.encrypted_content"
