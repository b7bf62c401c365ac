"""The sampler's state for one sequence, and the interfaces of samplers and constraints.

The variates of draws are hashes of counters, so there is no generator whose state is to be kept.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from stonechat_models.types import SamplingParams, TokenLogprobs

if TYPE_CHECKING:
    import torch

NOT_FINITE = "the model's logits are not finite"
"""Why a row has no token, or a prompt no log-probabilities."""

_INT64_MASK = (1 << 64) - 1


class TokenConstraint(Protocol):
    """Restricts which token may come next: a grammar, or a reasoning budget."""

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        """Write the allowed tokens into `row` and return True.

        `row` is int32[ceil(V / 32)]; bit i of word w is token 32 w + i. If every token is allowed,
        leave `row` unchanged and return False.
        """

    def accept(self, token_id: int) -> None:
        """Advance past a chosen token."""

    def fork(self) -> "TokenConstraint":
        """Return an independent constraint at the same position."""

    @property
    def is_finished(self) -> bool:
        """True when only the end may follow. The engine then ends the sequence (`stop`)."""


@dataclass(slots=True)
class RequestTensors:
    """Tensors that all choices of a request share. The sampler makes them when it needs them."""

    prompt_ids: "torch.Tensor | None" = None
    """The prompt's distinct tokens, int64."""
    prompt_set: set[int] = field(default_factory=set)
    """The same on the host, once there are `prompt_ids`."""
    bias: "tuple[torch.Tensor, torch.Tensor] | None" = None
    """`logit_bias` as token ids, int64, and amounts, float32."""
    host_prompt_ids: npt.NDArray[np.int64] | None = None
    """`prompt_ids` as an array of the host."""
    host_bias: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    """`bias` as arrays of the host."""


@dataclass(slots=True)
class SamplingState:
    """Per-sequence input of the sampler. Only the engine's thread touches it."""

    params: SamplingParams
    seed: int
    """int64. Fixed once per request: draws are reproducible even if `params.seed` is None."""
    choice_index: int
    prompt_token_ids: list[int]
    num_output_tokens: int = 0
    """Tokens generated so far. This is the position that determines the next draw."""
    constraint: TokenConstraint | None = None
    suppressed_ids: tuple[int, ...] = ()
    """End tokens that may not be chosen before `min_tokens` tokens are generated. `ignore_eos` does
    not add to this: it lets generation run past EOS, but EOS may still be sampled."""
    output_counts: dict[int, int] = field(default_factory=dict)
    """How often each generated token occurs. The engine updates it with `append`."""
    tensors: RequestTensors = field(default_factory=RequestTensors)
    settings: tuple[float, ...] | None = None
    """What a sampler made of `params` at the first step, for the next ones."""

    @property
    def needs_edits(self) -> bool:
        """False if `logits` has nothing to edit in this row."""
        params = self.params
        return bool(
            params.logit_bias
            or params.frequency_penalty
            or params.presence_penalty
            or params.repetition_penalty != 1.0
            or self.suppressed_ids
            or self.constraint is not None
        )

    def ahead(self, draft: Sequence[int]) -> "list[SamplingState]":
        """Return the states after 1, 2, … tokens of `draft`. This state does not change.

        If a constraint cannot accept a draft token, the states from there on have no constraint.
        That is safe: the sampler cannot choose that token, so what it chooses after it is ignored.
        """
        states, state = [], self
        for token_id in draft:
            state = replace(state, output_counts={**state.output_counts})
            try:
                if state.constraint is not None:
                    state.constraint = state.constraint.fork()
                state.append(token_id)
            except Exception:
                state.constraint = None
            states.append(state)
        return states

    def append(self, token_id: int) -> None:
        """Record a chosen token, advance the constraint, allow end tokens after `min_tokens`."""
        self.num_output_tokens += 1
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
        if self.num_output_tokens >= self.params.min_tokens:
            self.suppressed_ids = ()
        if self.constraint is not None:
            self.constraint.accept(token_id)


def uniform_variate(seed: int, choice_index: int, position: int) -> float:
    """Return u with 0 < u < 1, the same for the same three integers on every machine.

    u is 52 bits of a BLAKE2b digest (RFC 7693), centred in their cell, so it reaches neither end.
    """
    counters = struct.pack(
        "<QQQ", seed & _INT64_MASK, choice_index & _INT64_MASK, position & _INT64_MASK
    )
    digest = hashlib.blake2b(counters, digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 12) + 0.5) * 2.0**-52


def uniform_variates(counters: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return float64[R], the `uniform_variate` of each seed, choice index and position (int64)."""
    packed = np.array(counters, "<i8").tobytes()
    starts = range(0, len(packed), 24)
    digests = [hashlib.blake2b(packed[i : i + 24], digest_size=8).digest() for i in starts]
    words: np.ndarray = np.frombuffer(b"".join(digests), "<u8") >> 12
    return (words + 0.5) * 2.0**-52


@dataclass(slots=True)
class SampledTokens:
    """One token per row, and its log-probabilities if the row requests them."""

    token_ids: list[int]
    """-1 for a row in `errors`."""
    logprobs: list[TokenLogprobs | None]
    errors: dict[int, str] = field(default_factory=dict)
    """By row, why it has no token. Its sequence ends with an error; the others continue."""


Array = Any
"""A tensor of PyTorch, or on the compiled path an array of numpy: whatever the model computes."""


class SamplingLike(Protocol):
    """The tokens of a launched pass; see `sampler.Sampling`."""

    tokens: Array
    """int64[R], where the model is."""

    def read(self) -> SampledTokens:
        """Wait for the tokens and return them."""


class PromptScores(Protocol):
    """The log-probabilities of a prompt's tokens; see `logprobs.Logprobs`."""

    def read(self) -> list[TokenLogprobs]:
        """Wait for them. One is NaN if its row is not finite."""


class SamplerLike(Protocol):
    """Chooses one token per row; see `sampler.Sampler`."""

    def __call__(self, logits: Array, states: Sequence[SamplingState]) -> SampledTokens:
        """Choose from logits float32[R, V], which may be overwritten, for R states, and wait."""

    def launch(self, logits: Array, states: Sequence[SamplingState]) -> SamplingLike:
        """Do the same without waiting."""

    def score(
        self,
        logits: Array,
        rows: Sequence[int],
        token_ids: Sequence[int],
        num_tops: Sequence[int],
    ) -> PromptScores:
        """Start to compute the log-probabilities of `token_ids`, one for each of `rows` of
        float[R, V], and of as many of the most likely tokens as `num_tops` says."""
