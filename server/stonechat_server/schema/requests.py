"""The body of `POST /v1/chat/completions`.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.messages import Message
from stonechat_server.schema.sampling_fields import Budget, SamplingFields, TokenBudget, Whole
from stonechat_server.schema.tools import FunctionDefinition, NamedTool, Tool, ToolChoice

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Reasoning(WireModel):
    """OpenRouter's switch and limits of reasoning. `enabled` is true unless the effort is none."""

    effort: Effort | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None


class Thinking(WireModel):
    """The switch of reasoning that Anthropic, DeepSeek and GLM have."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: TokenBudget | None = None


class ConversationFields(SamplingFields):
    """How a conversation becomes a prompt, and how much the model reasons."""

    reasoning_effort: Effort | None = None
    thinking_budget: Budget | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: ListOf[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    # Other names, which clients of other servers and services use: see `fields.py`.
    thinking_token_budget: TokenBudget | None = None
    thinking_budget_tokens: TokenBudget | None = None
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    think: bool | Effort | None = None


class ChatCompletionRequest(ConversationFields):
    """A conversation to continue, and the options for doing so."""

    messages: Annotated[ListOf[Message], Field(min_length=1)]

    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None

    tools: ListOf[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[ListOf[FunctionDefinition], Field(min_length=1, max_length=128)] | None = (
        None
    )
    function_call: Literal["none", "auto"] | NamedTool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    modalities: ListOf[Literal["text", "audio"]] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None

    reasoning: Reasoning | None = None

    def wanted_logprobs(self) -> int | None:
        """0 with `logprobs` alone; alternatives come with `top_logprobs`."""
        return (self.top_logprobs or 0) if self.logprobs else None
