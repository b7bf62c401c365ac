"""The request fields that chat completions and text completions share.

Types and ranges are checked here. `fields.py` says what each field does.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from stonechat_server.schema.base import ListOf, WireModel
from stonechat_server.schema.messages import TextParts
from stonechat_server.schema.response_format import ResponseFormat, SchemaText, StructuredOutputs

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_METADATA = 16


def _whole(value: object) -> object:
    """Make a float that is whole an integer: some languages have no other numbers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""A number without a fraction, also one such as 100.0."""
MinusOne = Annotated[Literal[-1], BeforeValidator(_whole)]
Priority = Annotated[Whole, Field(ge=-(2**31), lt=2**31)]

Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
StopString = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0)]
Count = Annotated[Whole, Field(ge=0)]
TokenLimit = Annotated[Whole, Field(ge=1)] | MinusOne
"""-1 is no limit."""
Budget = Annotated[Whole, Field(ge=0, lt=2**31)]
TokenBudget = Budget | MinusOne
"""-1 is no limit."""
StopStrings = StopString | Annotated[list[StopString], Field(max_length=64)]
RepetitionPenalty = Annotated[float, Field(ge=0.01, le=10.0)]
Seed = Annotated[Whole, Field(ge=INT64_MIN, le=INT64_MAX)]


def _first_wrong_bias(biases: object) -> object:
    """Return only the first invalid entry, if there is one: an error per token would take long."""
    if isinstance(biases, dict):
        for key, bias in biases.items():
            is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
            if bias is not None and not (is_number and -100.0 <= bias <= 100.0):
                return {key: bias}
    return biases


LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)] | None],
    BeforeValidator(_first_wrong_bias),
]


def _given_pairs(metadata: object) -> object:
    """Drop pairs whose value is null, and refuse too many: an error per pair would take long."""
    if not isinstance(metadata, dict):
        return metadata
    if len(metadata) > MAX_METADATA:
        context = {
            "field_type": "Object",
            "max_length": MAX_METADATA,
            "actual_length": len(metadata),
        }
        raise PydanticKnownError("too_long", context)
    return {key: value for key, value in metadata.items() if value is not None}


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
    BeforeValidator(_given_pairs),
]


class StreamOptions(WireModel):
    """What a stream has besides the deltas."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class Prediction(WireModel):
    """Text that the answer is expected to repeat in large part."""

    type: Literal["content"]
    content: str | TextParts


class SamplingOptions(WireModel):
    """How tokens are chosen: what the requests of all APIs for text may say."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Fraction | None = None
    seed: Seed | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None


class GenerationOptions(SamplingOptions):
    """How text is generated: what chats may say, in OpenAI's shapes and in Anthropic's."""

    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    min_tokens: Count | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    prediction: Prediction | None = None
    priority: Priority | None = None
    cache_salt: str | None = None


class SamplingFields(GenerationOptions):
    """How text is generated, and what is sent of it."""

    num_repeats: ClassVar[int] = 0
    """How often the end of a stream repeats the whole answer."""

    model: str | None = None

    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    max_completion_tokens: TokenLimit | None = None
    max_tokens: TokenLimit | None = None
    stop: StopStrings | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None

    response_format: ResponseFormat | None = None

    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: (
        Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None
    ) = None
    user: str | None = None
    safety_identifier: Annotated[str, Field(max_length=64)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None

    prompt_logprobs: Annotated[Whole, Field(ge=0, le=20)] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    # Other names, which clients of other servers and services use: see `fields.py`.
    repeat_penalty: RepetitionPenalty | None = None
    n_predict: TokenLimit | None = None
    num_predict: TokenLimit | None = None
    max_new_tokens: TokenLimit | None = None
    max_output_tokens: TokenLimit | None = None
    min_new_tokens: Count | None = None
    stop_sequences: StopStrings | None = None
    random_seed: Seed | None = None
    json_schema: SchemaText | bool | None = None
    guided_json: SchemaText | bool | None = None
    regex: str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[ListOf[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    ebnf: str | None = None
    guided_grammar: str | None = None
    format: SchemaText | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens that the client wants in each choice. None: no limit."""
        limit = self.max_completion_tokens
        if limit is None:
            limit = self.max_tokens
        return None if limit == -1 else limit

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives beside each generated token. None: no log-probabilities."""
        return self.wanted_logprobs() if "logprobs" in self.model_fields_set else None

    def wanted_logprobs(self) -> int | None:
        """`num_logprobs` of a request that has the field `logprobs`."""
        return None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """Alternatives beside each token of the prompt. None: no log-probabilities."""
        return self.prompt_logprobs

    @property
    def num_samples(self) -> int:
        """How many texts are generated for a prompt."""
        return self.n or 1
