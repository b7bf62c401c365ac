"""A request in the engine, and its sequences: one per choice."""

import hashlib
import secrets
from array import array
from collections import abc
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import msgspec
import numpy as np
import numpy.typing as npt

from stonechat_models.engine.prompts.lookup import Drafter, PositionIndex
from stonechat_models.engine.prompts.media import PromptMedia
from stonechat_models.sampling.state import RequestTensors, SamplingState, TokenConstraint
from stonechat_models.types import FinishReason, GenerateRequest, TokenLogprobs

_ROOT = b"stonechat"


def root_hash(salt: str, adapter: str = "") -> bytes:
    """Return the parent hash of a sequence's first block.

    Sequences of different salts share no blocks. Neither do those of different adapters, whose
    keys and values differ.
    """
    person = hashlib.blake2b(adapter.encode(), digest_size=16).digest() if adapter else b""
    return hashlib.blake2b(salt.encode(), digest_size=16, key=_ROOT, person=person).digest()


def block_hash(parent: bytes, token_ids: abc.Sequence[int], media: bytes = b"") -> bytes:
    """Return the hash of a full block after `parent`: 16 bytes, so no collision is expected.

    `media`: what tells its tokens from others with the same ids.
    """
    content = parent + array("q", token_ids).tobytes() + media
    return hashlib.blake2b(content, digest_size=16).digest()


BY_ORDER = attrgetter("order")
"""Sorts sequences into the order in which they run. It is never equal for two sequences."""


@dataclass(slots=True, eq=False)
class SequenceGroup:
    """A prompt with its n sequences. The fields for n > 1 are explained in `forking`."""

    request: GenerateRequest
    adapter: int = -1
    """The index of the request's adapter in `ModelInfo.adapters`; -1: it has none."""
    sequences: list["Sequence"] = field(default_factory=list)
    followers: list["Sequence"] = field(default_factory=list)
    """The sequences that wait until the first one has computed the prompt."""
    prompt_blocks: list[int] = field(default_factory=list)
    """The blocks that the followers fork from."""
    num_cached_tokens: int = 0
    num_cache_written_tokens: int = 0
    scheduled_time: float | None = None
    """When the group was first part of a step."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Those of the prompt that are known so far. None: not wanted, or handed out already."""
    media: PromptMedia | None = None

    def add_sequences(
        self,
        constraints: abc.Sequence[TokenConstraint | None],
        max_model_len: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        """Make the request's sequences. `constraints` is empty or has one entry per choice."""
        params, prompt = self.request.params, list(self.request.prompt_token_ids)
        seed = secrets.randbits(64) - 2**63 if params.seed is None else params.seed
        room = max_model_len - len(prompt)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        tensors = RequestTensors()
        for index in range(params.n):
            state = SamplingState(params, seed, index, prompt, tensors=tensors)
            state.constraint = constraints[index] if constraints else None
            if params.min_tokens > 0:
                state.suppressed_ids = (*eos_token_ids, *params.stop_token_ids)
            self.sequences.append(Sequence(self, state, list(prompt), len(prompt), max_tokens))


@dataclass(slots=True)
class DraftState:
    """What the draft model has of one sequence."""

    rate: float
    """The acceptance rate of its draft tokens, of late."""
    length: int = 0
    """How many tokens it drafts for the next step."""
    num_computed: int = -1
    """Tokens with keys and values in the draft model's cache; -1: it is not known."""
    is_off: bool = False
    """The draft model cannot compute this sequence."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One choice: its known tokens, how many are computed, and where their keys and values are.

    Tokens that launched steps compute are in flight. If such a step reaches the end of the known
    tokens, it adds a placeholder for one more token, and the next step may already depend on it.

    Invariant: `num_computed <= len(token_ids)`, and the blocks in `block_table` cover all tokens
    that are computed or in flight. `block_hashes[i]` is the chained hash of full block i.
    """

    group: SequenceGroup
    sampling: SamplingState
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    num_computed: int = 0
    block_table: "array[int]" = field(default_factory=partial(array, "i"))
    """int32."""
    block_hashes: list[bytes] = field(default_factory=list)
    num_scheduled: int = 0
    """Tokens that are computed or in flight."""
    num_placeholders: int = 0
    """Output tokens that the steps in flight will add."""
    in_flight: list["Scheduled"] = field(default_factory=list)
    """The sequence's items in the steps in flight, oldest first."""
    num_registered_blocks: int = 0
    """Leading blocks already offered to the prefix cache."""
    drafter: Drafter | None = None
    """Proposes draft tokens. A sequence that may draft waits for the previous step's tokens."""
    past: PositionIndex | None = None
    """Finds the last tokens in what comes before them, until they are found for the first time.
    Then there is a drafter."""
    draft_state: DraftState | None = None
    """None: there is no draft model, or it does not draft for this sequence."""
    state_slot: int = -1
    """Where the model keeps the sequence's recurrent state; -1: nowhere."""
    num_state_tokens: int = 0
    """Tokens in the recurrent state once the steps in flight are done; -1: it is not known."""
    finish_reason: FinishReason | None = None
    index: int = field(init=False)
    """Which of the request's choices this is."""
    order: tuple[int, float, str, int] = field(init=False)
    """Priority, arrival, request id, choice index: lower runs first."""

    def __post_init__(self) -> None:
        request = self.group.request
        self.index = self.sampling.choice_index
        self.order = (request.priority, request.arrival_time, request.request_id, self.index)

    @property
    def num_remaining(self) -> int:
        """Known tokens and placeholders that no step computes yet: 1 in decode, more in prefill.

        0 while the last token that the sequence may have is in flight.
        """
        num_tokens, num_placeholders = len(self.token_ids), self.num_placeholders
        if (
            num_placeholders
            and num_tokens - self.num_prompt_tokens + num_placeholders >= self.max_tokens
        ):
            return 0
        return num_tokens + num_placeholders - self.num_scheduled

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def set_computed(self, num_tokens: int) -> None:
        """Set how many tokens have keys and values in `block_table`. None may be in flight."""
        self.num_computed = self.num_scheduled = num_tokens

    def append(self, token_id: int) -> bool:
        """Add a chosen token. Return True if it repeats a token of the request's prediction that
        the sequence has not repeated before."""
        self.token_ids.append(token_id)
        is_predicted = self.drafter is not None and self.drafter.follow(token_id)
        self.sampling.append(token_id)
        return is_predicted

    def hash_of_block(self, i: int, block_size: int) -> bytes:
        """Return the chained hash of block i. All tokens of the block must be known."""
        for j in range(len(self.block_hashes), i + 1):
            self.block_hashes.append(self.hash_of_tokens(j, (j + 1) * block_size, block_size))
        return self.block_hashes[i]

    def hash_of_tokens(self, num_blocks: int, end: int, block_size: int) -> bytes:
        """Return the hash of the tokens up to `end`, chained to that of the first blocks."""
        request, media, start = self.group.request, self.group.media, num_blocks * block_size
        parent = (
            self.hash_of_block(num_blocks - 1, block_size)
            if num_blocks
            else root_hash(request.cache_salt, request.adapter)
        )
        content = media.content_of(start, end) if media is not None else b""
        return block_hash(parent, self.token_ids[start:end], content)


class Scheduled(msgspec.Struct, eq=False):
    """An item of a step: a sequence, and which of its tokens the step computes. They are
    `num_tokens` tokens from `start` on, then the draft tokens."""

    sequence: Sequence
    start: int
    num_tokens: int
    reaches_end: bool
    """True if the item has the sequence's last token, so that the next one can be sampled."""
    depends_on: "Scheduled | None" = None
    """The earlier item that yields the last of these tokens, if that is a placeholder."""
    draft: tuple[int, ...] = ()
    num_wanted: int = 0
    """How many tokens the draft model is to draft. There are blocks for them."""
    num_again: int = 0
    """Tokens before `start` that are computed again, because the recurrent state is not that of
    `start`: an earlier step failed or was taken back."""
    num_prompt_rows: int = 0
    """Rows of logits for log-probabilities of the prompt. They come before those to sample from."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Those of these rows, once the step is read."""
    vector: npt.NDArray[np.float32] | None = None
    """The final hidden state of the prompt's last token, once the step is read, if it is wanted."""
    row: int = -1
    """Index of the item's first sampled row; -1 until sampling starts."""
    is_dropped: bool = False
    """True if its result no longer counts: the sequence has ended or lost its blocks, or the item
    was taken back."""

    @property
    def context_len(self) -> int:
        return self.start + self.num_tokens + len(self.draft)

    @property
    def wants_vector(self) -> bool:
        return self.reaches_end and self.sequence.group.request.embedding is not None

    @property
    def num_rows(self) -> int:
        """Rows of logits to sample from: one, plus one per draft token; 0 before the end."""
        return 1 + len(self.draft) if self.reaches_end else 0
