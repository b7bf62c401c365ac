"""Messages between the server and the engine: small, typed, picklable.

Token ids are ints, log-probabilities are natural logarithms, times are `time.monotonic()` seconds.
A record that is made for every token is a `msgspec.Struct`, which is created several times faster
than a frozen dataclass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from stonechat_models.errors import InvalidParamsError
from stonechat_models.transcript import SpeechParams, Transcript

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_N = 128

GRAMMAR_FAILED = "the grammar cannot be followed further: "
"""An output's `error` that starts with this is a fault of the grammar, not of the engine."""


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar for the output, hashable so that compiled grammars can be cached.

    `source` is a JSON schema (as JSON text), a regex, a Lark grammar, a JSON object of Lark
    grammars by name (the first may refer to another as `@name`), or a JSON list of allowed texts.
    """

    kind: Literal["json_schema", "regex", "lark", "lark_bundle", "choice"]
    source: str


@dataclass(frozen=True, slots=True)
class ReasoningSpec:
    """How a model marks its reasoning. A grammar starts after it; a budget can end it."""

    start: str
    end: str
    starts_open: bool
    """True if the prompt already ends inside the reasoning."""
    budget: int | None = None
    """At most this many reasoning tokens; then `end` is forced. None: no limit."""


@dataclass(frozen=True, slots=True)
class StopScope:
    """The parts of a text in which stop strings count. They do not count in reasoning."""

    after: tuple[str, ...]
    """Markers that end reasoning. Stop strings count after the first of them."""
    until: tuple[str, ...] = ()
    """Markers that end a message. Stop strings are ignored from here to the next `after` marker."""
    unless: str = ""
    """A marker that starts reasoning. If set, stop strings also count from the start of a text that
    does not begin with it (leading whitespace is ignored)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRules:
    """Which texts end a choice, and in which parts of its text they count."""

    strings: tuple[str, ...]
    scope: StopScope | None = None
    """None: stop strings count in the whole text."""
    never_after: tuple[str, ...] = ()
    """Texts that open a tool call. After the first of them (in scope) no stop string counts."""
    never_first: str = ""
    """If the first character after whitespace (in scope) is this, no stop string counts from there
    on."""

    def __post_init__(self) -> None:
        if len(self.strings) > MAX_STOP_STRINGS:
            raise InvalidParamsError("stop", f"at most {MAX_STOP_STRINGS} stop strings are allowed")
        if not all(self.strings):
            raise InvalidParamsError("stop", "a stop string must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen. Ranges are checked. See `docs/api/`."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    seed: int | None = None
    """Any int64. None: the engine picks a random one."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """None: no logprobs; 0: only the chosen token's; k: also those of the k most likely tokens."""
    prompt_logprobs: int | None = None
    """As `top_logprobs`, for the tokens of the prompt. Nothing is read from the prefix cache."""
    max_tokens: int | None = None
    """None: as many as fit in the context length. 0: the prompt is computed, and that is all."""
    min_tokens: int = 0
    stop: StopRules | None = None
    """None: no stop strings."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    continues_text: bool = False
    """Whether the text goes on where the prompt ends, as in text completions. A space at its start
    is kept then, and tokens without text (EOS, skipped special tokens) have log-probabilities."""
    grammar: GrammarSpec | None = None
    reasoning: ReasoningSpec | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is chosen."""
        return self.temperature == 0.0 or self.top_k == 1

    def __post_init__(self) -> None:
        _check_range("n", self.n, 1, MAX_N)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.top_k < 0:
            raise InvalidParamsError("top_k", f"top_k must be 0 (off) or more, not {self.top_k}")
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InvalidParamsError("seed", "seed must fit a signed 64-bit integer")
        if self.top_logprobs is not None:
            _check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.max_tokens is not None and self.max_tokens < 0:
            raise InvalidParamsError("max_tokens", "max_tokens must not be negative")
        if self.min_tokens < 0:
            raise InvalidParamsError("min_tokens", "min_tokens must not be negative")
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)


def _check_range(param: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InvalidParamsError(param, f"{param} must be between {low} and {high}, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParams:
    """How the embedding of a prompt, or the score of a pair of texts, is made."""

    dimensions: int | None = None
    """Keep only this many of the first numbers, and normalise again. None: all."""
    normalize: bool | None = None
    """Whether the embedding is scaled to the length 1. None: as the model does."""
    num_unpooled: int = 0
    """The first tokens of the prompt that do not count in the pooling. Of a pair: those of its
    first text."""


Modality = Literal["image", "audio", "video"]


class MediaTensor(msgspec.Struct, frozen=True):
    """An array that the model's processor made: little-endian, in C order."""

    dtype: str
    """A name of numpy, such as `float32`."""
    shape: tuple[int, ...]
    data: bytes


class MediaInput(msgspec.Struct, frozen=True):
    """An image, an audio clip or a piece of a video, as the model's tower for it takes it."""

    content_hash: bytes
    """16 bytes. What has the same hash has the same tensors, for one model."""
    places: tuple[tuple[int, int], ...]
    """Where its placeholder tokens are in the prompt: runs (start, length) in order. The tower
    gives one embedding for each of these tokens."""
    tensors: Mapping[str, MediaTensor]
    """The arguments of the model's `get_image_features` by name, for this image or these frames
    alone; of a clip, those of its `forward`."""
    modality: Modality = "image"

    @property
    def num_tokens(self) -> int:
        """How many tokens of the prompt its embeddings take the place of."""
        return sum(length for _, length in self.places)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt to complete `params.n` times. `request_id` is unique among live requests."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    """Lower runs first; equal priorities run in order of arrival."""
    cache_salt: str = ""
    """Only requests with the same salt share blocks of the prefix cache."""
    arrival_time: float = 0.0
    prediction_token_ids: tuple[int, ...] = ()
    """A text that the answer may largely repeat. It makes the answer faster, not different."""
    embedding: EmbeddingParams | None = None
    """Set: nothing is generated, and the output is the embedding of the prompt, or its score."""
    adapter: str = ""
    """The name of the LoRA adapter that computes it beside the model, one of
    `ModelInfo.adapters`. Empty: the model alone."""
    media: tuple[MediaInput, ...] = ()
    """The media of the prompt, in pieces. Their placeholder tokens do not overlap."""
    speech: SpeechParams | None = None
    """Set: the only medium is a clip, without places in the prompt, and the output is what is said
    in it. The prompt ends with the token that starts a transcript."""


class TokenLogprobs(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Raw log-probabilities at one position: of the chosen token, and of the top k, best first."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    rank: int = 0
    """1 for the most likely token; 0 if not computed. Only tokens of a prompt have it."""


class TokenOutput(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one step adds to one choice of a request: token ids, no text yet."""

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | None
    num_cached_tokens: int
    stop_token_id: int | None = None
    """The token that ended the sequence: EOS or a stop token. EOS has no text; a stop token's text
    is shown only with `include_stop_str_in_output`."""
    num_cache_written_tokens: int = 0
    """Prompt tokens that this request added to the prefix cache."""
    scheduled_time: float | None = None
    """When the request was first part of a step."""
    error: str | None = None
    num_predicted: int = 0
    """How many of these tokens repeat tokens of the request's prediction, each of them once."""
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    """Those of all prompt tokens but the first, in the request's first output after its prompt."""
    embedding: bytes | None = None
    """The embedding of the prompt, as little-endian float32. Of a reranker: the score of the pair,
    and the number that the score is made of."""
    transcript: Transcript | None = None
    """What is said in the clip, in the last output."""


class TopLogprob(msgspec.Struct, frozen=True, gc=False):
    """One likely token at a position. Its `bytes` may be only part of a character."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float


class LogprobEntry(msgspec.Struct, frozen=True, gc=False):
    """The chosen token at a position, and the `top` most likely ones, best first."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...]
    rank: int = 0
    """1 for the most likely token; 0 if not computed. Only tokens of a prompt have it."""


class CompletionDelta(msgspec.Struct, frozen=True, gc=False):
    """What is new in one choice. `text` is safe to show: it has whole characters, and no part of a
    stop string that is to be removed.

    Over a stream, the joined `text` is the choice's text, and the joined `logprobs` are those of
    its tokens. `num_tokens` adds up to all generated tokens, even those whose text is held back.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[LogprobEntry, ...] | None
    num_tokens: int
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that matched; None for EOS."""
    num_predicted: int = 0
    """How many of these tokens repeat tokens of the request's prediction, each of them once."""


class RequestTimings(msgspec.Struct, frozen=True, gc=False):
    """When each event of a request happened. None: not yet."""

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


class RequestOutput(msgspec.Struct, frozen=True, gc=False):
    """What one step adds to a request, or several steps whose outputs waited for the reader.

    `deltas` are in order. An output of several steps may have several deltas of one choice. The
    request's last output has `finished` set.
    """

    request_id: str
    deltas: tuple[CompletionDelta, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    finished: bool
    timings: RequestTimings
    num_cache_written_tokens: int = 0
    error: str | None = None
    prompt_logprobs: tuple[LogprobEntry | None, ...] | None = None
    """One entry per prompt token, None for the first, in the first output after the prompt. The
    joined `token` of the entries that are not special is the text after the first token."""
    embedding: bytes | None = None
    """The embedding of the prompt, as little-endian float32. Of a reranker: the score of the pair,
    and the number that the score is made of."""
    transcript: Transcript | None = None
    """What is said in the clip, in the last output."""
