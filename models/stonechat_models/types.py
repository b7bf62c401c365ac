"""Messages that cross the seam between a server and the engine: small, typed, picklable.

Token ids are ints, log-probabilities are natural logarithms, times are `time.monotonic()` seconds.
What every token needs some of is a `msgspec.Struct`, which is made several times faster than a
frozen dataclass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import msgspec

from stonechat_models.errors import InvalidParamsError

MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_N = 128

GRAMMAR_FAILED = "the grammar cannot be followed further: "
"""An `error` of an output that begins like this is the grammar's, not the engine's."""


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
    grammars by name (the first may refer to another as `@name`), or a JSON list of choices.
    """

    kind: Literal["json_schema", "regex", "lark", "lark_bundle", "choice"]
    source: str


@dataclass(frozen=True, slots=True)
class ReasoningSpec:
    """How a model marks its reasoning: a grammar starts after it, and a budget can end it."""

    start: str
    end: str
    starts_open: bool
    """True when the prompt already ends inside the reasoning."""
    budget: int | None = None
    """At most this many reasoning tokens; then `end` is forced."""


@dataclass(frozen=True, slots=True)
class StopScope:
    """Which part of a text stop strings count in: not in the model's reasoning."""

    after: tuple[str, ...]
    """They count once one of these texts has come, which end reasoning,"""
    until: tuple[str, ...] = ()
    """and until one of these has, which end a message; then from the next of `after` on."""
    unless: str = ""
    """Not empty: they count from the start in a text that does not begin with this, whitespace
    aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of a request are chosen. Ranges are checked; `docs/api.md` has meanings."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    seed: int | None = None
    """Any int64. None: the engine picks a fresh random one."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None
    """None: no logprobs; 0: of the chosen token only; k: of the k most likely as well."""
    max_tokens: int | None = None
    """None: what fits the context."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    unstoppable_after: tuple[str, ...] = ()
    """Once one of these texts has come no stop string counts: they open calls of tools."""
    unstoppable_first: str = ""
    """Nor does one in a text whose first character, whitespace aside, is this."""
    stop_scope: StopScope | None = None
    """None: stop strings count from the start. Both of the above look at its text only."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    grammar: GrammarSpec | None = None
    reasoning: ReasoningSpec | None = None

    def __post_init__(self) -> None:
        _check_range("n", self.n, 1, MAX_N)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        if self.top_k < 0:
            raise InvalidParamsError("top_k", f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 0.0 < self.repetition_penalty <= 10.0:
            raise InvalidParamsError(
                "repetition_penalty",
                f"repetition_penalty must be above 0 and at most 10, not {self.repetition_penalty}",
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InvalidParamsError("seed", "seed must fit a signed 64-bit integer")
        if self.top_logprobs is not None:
            _check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidParamsError("max_tokens", "max_tokens must be at least 1")
        if self.min_tokens < 0:
            raise InvalidParamsError("min_tokens", "min_tokens must not be negative")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidParamsError("stop", f"at most {MAX_STOP_STRINGS} stop strings are allowed")
        if any(not text for text in self.stop):
            raise InvalidParamsError("stop", "a stop string must not be empty")
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)


def _check_range(param: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise InvalidParamsError(param, f"{param} must be between {low} and {high}, not {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One prompt to complete `params.n` times. `request_id` is unique among live requests."""

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    priority: int = 0
    """Lower runs first; equal priorities run in order of arrival."""
    cache_salt: str = ""
    """Prefix-cache blocks are shared only among requests of the same salt."""
    arrival_time: float = 0.0
    prediction_token_ids: tuple[int, ...] = ()
    """What the answer may largely repeat. It makes the answer quicker and does not change it."""


class TokenLogprobs(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Raw log-probabilities at one position: of the chosen token, and of the top k, best first."""

    token_id: int
    logprob: float
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class TokenOutput(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What one step gave one choice of a request, as the engine sees it: ids only."""

    request_id: str
    index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | None
    num_cached_tokens: int
    stop_token_id: int | None = None
    """The token that ended the sequence (EOS or a stop token); its text is never shown."""
    num_cache_written_tokens: int = 0
    """Prompt tokens that this request newly put into the prefix cache."""
    scheduled_time: float | None = None
    """When the request first got a place in a step."""
    error: str | None = None


class TopLogprob(msgspec.Struct, frozen=True, gc=False):
    """One alternative at a position; `bytes` are the token's own, even if part of a character."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float


class LogprobEntry(msgspec.Struct, frozen=True, gc=False):
    """The chosen token at a position with its alternatives, best first."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...]


class CompletionDelta(msgspec.Struct, frozen=True, gc=False):
    """News of one choice: text that is safe to show (whole characters, no part of a stop string).

    Joined over a stream, `text` is the choice's text, `logprobs` its tokens, and `num_tokens`
    sums to the tokens generated (those that text was held back for included).
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[LogprobEntry, ...] | None
    num_tokens: int
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that matched; None for EOS."""


class RequestTimings(msgspec.Struct, frozen=True, gc=False):
    """When things happened to a request; None: not yet."""

    arrival: float
    scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None


class RequestOutput(msgspec.Struct, frozen=True, gc=False):
    """What one step gave a request, or several whose news was waiting. The last has `finished` set.

    `deltas` are in order, and those of several steps hold several of a choice.
    """

    request_id: str
    deltas: tuple[CompletionDelta, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    finished: bool
    timings: RequestTimings
    num_cache_written_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What was loaded and how it is run: for the start banner, `/v1/models` and the fingerprint."""

    name: str
    architecture: str
    vocab_size: int
    device: str
    dtype: str
    quantization: str
    """none, int8, int4, fp8 (with what is not, if anything: `int8 (not: mixer)`), or the GGUF type
    that is kept, such as Q4_1."""
    backend: str
    num_parameters: int
    weight_bytes: int
    weights_hash: str
    block_size: int
    threads: int
    attention_backend: str = ""
    kv_bytes_per_token: int = 0
    num_blocks: int = 0
    max_model_len: int = 0
    max_batch_tokens: int = 0
    max_num_seqs: int = 0
    """These six are known when the model is there and its KV cache allocated; 0 or empty before."""

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine; counters grow from the engine's start."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0
    """Blocks that some live request holds; free blocks that keep cached prefixes do not count."""
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cache_queried_tokens: int = 0
    num_cache_hit_tokens: int = 0
    num_drafted_tokens: int = 0
    """Tokens guessed ahead, from predictions or from the context,"""
    num_accepted_draft_tokens: int = 0
    """and how many of them were right."""
    num_preemptions: int = 0
    num_failed_steps: int = 0
    last_step_seconds: float = 0.0
