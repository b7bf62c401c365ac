"""What clients receive: the chunks of a stream, or one answer that is made from the chunks.

A key whose value is None is sent as null. A key whose value is `UNSET` is left out.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReasonName = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class TopLogprobBody(msgspec.Struct):
    """One alternative at a position."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(msgspec.Struct):
    """One token with its log-probability; `bytes` are those of this token alone."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobBody]


class LogprobsBody(msgspec.Struct):
    """Log-probabilities of the tokens of a choice, or of a delta."""

    content: list[TokenLogprobBody] | None
    refusal: list[TokenLogprobBody] | None = None


class PromptLogprob(msgspec.Struct, gc=False):
    """The log-probability of one token at a position of the prompt. Rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""One entry per token of the prompt, null for the first. The keys are token ids."""


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Prompt tokens read from and written to the prefix cache, and those of media."""

    cached_tokens: int
    cache_write_tokens: int
    audio_tokens: int = 0
    image_tokens: int = 0
    video_tokens: int | UnsetType = UNSET
    """Only if the prompt has videos."""


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """The generated tokens by kind."""

    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    audio_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a whole request: the prompt counts once, the completion is summed over choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    cache_creation_input_tokens: int
    cache_read_input_tokens: int


class FunctionCallDelta(msgspec.Struct, kw_only=True):
    """A fragment of a call: the name comes once, the arguments come in pieces."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CustomCallDelta(msgspec.Struct, kw_only=True):
    """A fragment of a custom tool's call."""

    name: str | UnsetType = UNSET
    input: str | UnsetType = UNSET


class ToolCallDeltaBody(msgspec.Struct, kw_only=True):
    """What a chunk adds to a call; only the first one has `id` and `type`."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET
    function: FunctionCallDelta | UnsetType = UNSET
    custom: CustomCallDelta | UnsetType = UNSET


class DeltaBody(msgspec.Struct, kw_only=True):
    """What a chunk adds to a choice's message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDeltaBody] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    """What a chunk adds to a choice; `finish_reason` is null until the last one."""

    index: int
    delta: DeltaBody
    logprobs: LogprobsBody | None = None
    finish_reason: FinishReasonName | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    service_tier: str | UnsetType = UNSET
    usage: Usage | UnsetType | None = UNSET
    obfuscation: str | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class FunctionCallBody(msgspec.Struct):
    """A complete call's name and arguments (JSON text)."""

    name: str
    arguments: str


class CustomCallBody(msgspec.Struct):
    """A complete custom call's name and input."""

    name: str
    input: str


class ToolCallBody(msgspec.Struct, kw_only=True):
    """A complete call."""

    id: str
    type: Literal["function", "custom"]
    function: FunctionCallBody | UnsetType = UNSET
    custom: CustomCallBody | UnsetType = UNSET


class MessageBody(msgspec.Struct, kw_only=True):
    """The assistant's message of a choice."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallBody] | UnsetType = UNSET
    function_call: FunctionCallBody | UnsetType = UNSET


class Choice(msgspec.Struct, kw_only=True):
    """One of the `n` choices."""

    index: int
    message: MessageBody
    logprobs: LogprobsBody | None
    finish_reason: FinishReasonName
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer to a request without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ModelCard(msgspec.Struct, kw_only=True):
    """An entry of `/v1/models`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str
    """The model behind the name."""
    parent: str | None = None
    """The model that a LoRA adapter with a name of its own belongs to."""
    state: str
    """`unloaded`, `loading`, `loaded`, `unloading`, `sleeping` or `failed`."""
    size: int | None
    """What it takes of the memory in bytes: weights, KV cache and process. None: not known yet."""
    error: str | None = None
    """Why it has failed."""
    max_model_len: int | None
    """None: not known yet."""
    input_modalities: list[Literal["text", "image", "audio", "video"]] | UnsetType = UNSET
    """What prompts may hold. Absent: not known yet."""
    stonechat: dict[str, Any] | None
    """How the server runs the model: device, precision, sizes in bytes and tokens. None: it was
    never loaded."""


class ModelList(msgspec.Struct):
    """The answer of `/v1/models`."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
