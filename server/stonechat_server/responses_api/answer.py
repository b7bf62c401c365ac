"""What clients receive of `/v1/responses`: the answer and its items.

A key whose value is None is sent as null. A key whose value is `UNSET` is left out.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.schema.responses import TokenLogprobBody

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ErrorCode = Literal["server_error", "invalid_prompt"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprobBody] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """The text of a reasoning item."""

    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text"):
    """The text of a reasoning item, if a summary is asked for."""

    text: str


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class Reasoning(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's reasoning, in `content` or in `summary`."""

    id: str
    status: ItemStatus
    summary: list[SummaryText]
    content: list[ReasoningText] | UnsetType = UNSET
    encrypted_content: str | UnsetType = UNSET


class FunctionCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """The model's call of a function; `arguments` is JSON text."""

    id: str
    status: ItemStatus
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str


class CustomToolCall(msgspec.Struct, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """The model's call of a custom tool."""

    id: str
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    input: str


Item = Message | Reasoning | FunctionCall | CustomToolCall


class InputTokensDetails(msgspec.Struct, kw_only=True):
    """Prompt tokens read from and written to the prefix cache."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int | UnsetType = UNSET
    """Only if the prompt has audio: OpenAI's own type has no such key. So with images."""
    image_tokens: int | UnsetType = UNSET


class OutputTokensDetails(msgspec.Struct, kw_only=True):
    """The generated tokens by kind."""

    reasoning_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    """The tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why an answer is cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(msgspec.Struct, kw_only=True):
    """Why an answer has failed."""

    code: ErrorCode
    message: str


class Response(msgspec.Struct, kw_only=True):
    """The answer, also as a snapshot while it is made.

    The fields from `background` on are those of the request, with its defaults.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[Item]
    usage: Usage | UnsetType = UNSET
    service_tier: str = "default"
    store: bool = False
    background: bool = False
    previous_response_id: str | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | UnsetType = UNSET
    safety_identifier: str | UnsetType = UNSET
    prompt_cache_key: str | UnsetType = UNSET


class ResponseItemList(msgspec.Struct, kw_only=True):
    """A page of the items that a response was made from. The ids are empty if it has none."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str
    last_id: str
    has_more: bool


class InputTokens(msgspec.Struct):
    """How many tokens a prompt has."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class DeletedResponse(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["response"] = "response"
    deleted: bool = True
