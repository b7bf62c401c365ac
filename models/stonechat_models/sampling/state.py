"""What the sampler keeps for one sequence from step to step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from stonechat_models.types import SamplingParams, TokenLogprobs


class TokenConstraint(Protocol):
    """Restricts which token may come next: a grammar, or a reasoning budget."""

    def fill_bitmask(self, row: torch.Tensor) -> bool:
        """Write the allowed tokens into `row` (int32[ceil(V / 32)], bit i of word w is token
        32 w + i) and return True; return False, leaving `row` alone, when every token is allowed.
        """

    def accept(self, token_id: int) -> None:
        """Advance past a chosen token."""

    def fork(self) -> "TokenConstraint":
        """A constraint of its own at the same place."""

    @property
    def is_finished(self) -> bool:
        """True when nothing but the end may follow; the engine then ends the sequence (`stop`)."""


@dataclass(slots=True)
class SamplingState:
    """Per-sequence input of the sampler. Only the engine's thread touches it."""

    params: SamplingParams
    seed: int
    """int64; resolved once per request, so that `params.seed is None` is also reproducible."""
    choice_index: int
    prompt_token_ids: list[int]
    num_output_tokens: int = 0
    """Tokens generated so far: the position that seeds the next draw."""
    constraint: TokenConstraint | None = None
    suppressed_ids: tuple[int, ...] = ()
    """End tokens that may not be chosen until `min_tokens` are generated (or ever: ignore_eos
    does not suppress, it only does not stop)."""
    output_counts: dict[int, int] = field(default_factory=dict)
    """How often each generated token occurs; kept by the engine with `append`."""
    prompt_ids_tensor: torch.Tensor | None = None
    """The prompt's distinct tokens, int64; kept by the sampler once a penalty needs them."""
    bias_tensors: tuple[torch.Tensor, torch.Tensor] | None = None
    """`logit_bias` as token ids, int64, and amounts, float32; kept by the sampler, and the same
    for all choices of a request."""

    def ahead(self, draft: Sequence[int]) -> "list[SamplingState]":
        """The states after 1, 2, … tokens of `draft`; this one stays as it is.

        A constraint that cannot go on is left out: the token before cannot be chosen then, and
        what is chosen after it does not count.
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
        """Record a chosen token; the constraint advances too, and end tokens may be allowed."""
        self.num_output_tokens += 1
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1
        if self.num_output_tokens >= self.params.min_tokens:
            self.suppressed_ids = ()
        if self.constraint is not None:
            self.constraint.accept(token_id)


@dataclass(slots=True)
class SampledTokens:
    """One token a row, and its log-probabilities where the row asked for them."""

    token_ids: list[int]
    """-1 for a row in `errors`."""
    logprobs: list[TokenLogprobs | None]
    errors: dict[int, str] = field(default_factory=dict)
    """Why a row has no token, by row; its sequence ends with an error, the others go on."""


class SamplingLike(Protocol):
    """Tokens under way; see `sampler.Sampling`."""

    tokens: torch.Tensor

    def read(self) -> SampledTokens:
        """Wait for the tokens."""


class SamplerLike(Protocol):
    """Chooses one token a row; see `sampler.Sampler`."""

    def __call__(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> SampledTokens:
        """Logits float32[R, V], which may be overwritten, and R states."""

    def launch(self, logits: torch.Tensor, states: Sequence[SamplingState]) -> SamplingLike:
        """The same, without waiting."""
