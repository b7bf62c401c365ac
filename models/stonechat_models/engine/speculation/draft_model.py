"""A smaller model of the same vocabulary that drafts tokens for the model that is served.

Its KV cache has the blocks of the other model's: a sequence has one block table, and position p
lies in the same slot of both. So blocks are shared, freed and taken back for both at once. What the
draft model has computed of a sequence may lag behind; it catches up when the sequence drafts.

Draft tokens are chosen by the sampler, with the variate and the grammar of their positions. A draft
is right if the other model then chooses the same token with the same variate.
"""

import logging
import time
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from stonechat_models.backends.base import Array, CausalModel
from stonechat_models.engine.placement import Placement
from stonechat_models.engine.sequence import DraftState, Scheduled, Sequence
from stonechat_models.sampling.state import SamplerLike, SamplingState

logger = logging.getLogger(__name__)

FIRST_RATE = 0.7
"""What is assumed of the acceptance rate before the first draft."""
_RATE_WEIGHT = 0.1
_REST_WEIGHT = 0.01
"""How fast a bad rate is forgotten while nothing is drafted."""
MAX_GAP = 8
"""A sequence drafts if the draft model lags behind by at most this many tokens."""
MAX_CATCH_UP = 256
"""At most this many tokens of a sequence that lags are computed beside a step."""


@dataclass(slots=True)
class PassTime:
    """What the draft model took for a step. Seconds."""

    catch_up_tokens: int = 0
    catch_up_seconds: float = 0.0
    passes: list[tuple[int, float]] = field(default_factory=list)
    """Each pass that drafted a token: its number of sequences, and its time."""


class DraftModel:
    """Runs the draft model. A fault of it ends drafting, and no request."""

    def __init__(
        self,
        model: CausalModel,
        sampler: SamplerLike,
        *,
        vocab_size: int,
        end_ids: frozenset[int],
        max_tokens: int,
        place: Placement,
        takes_tensors: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`sampler` and `vocab_size` are those of the model that is served, whose answers end with
        `end_ids`. `max_tokens`: of a sequence, in a step. `place` is where the draft model
        computes, and `takes_tensors` says whether the sampler takes tensors of PyTorch."""
        self.model = model
        self.max_tokens = max_tokens
        self.rate = FIRST_RATE
        """The acceptance rate over all sequences, with which each begins."""
        self.is_broken = False
        """True after a fault. Nothing is drafted any more."""
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._end_ids = end_ids
        self._place = place
        self._takes_tensors = takes_tensors
        self._clock = clock
        self._block_size = model.info.block_size
        self._computed: dict[int, bytes] = {}
        """The content of blocks, as a chained hash, whose keys and values are all computed."""

    def gap(self, sequence: Sequence) -> int:
        """Return how many known tokens of the sequence are not computed here."""
        state = sequence.draft_state
        assert state is not None
        if state.num_computed < 0:
            state.num_computed = self._num_found(sequence)
        return len(sequence.token_ids) - state.num_computed

    def run(self, items: abc.Sequence[Scheduled], lagging: Sequence | None) -> PassTime:
        """Give the items that want one a draft. Let a sequence that lags catch up."""
        times = PassTime()
        try:
            if lagging is not None and lagging.block_table:
                start = self._clock()
                times.catch_up_tokens = self._catch_up(lagging)
                times.catch_up_seconds = self._clock() - start
            wanting = [item for item in items if item.num_wanted]
            if wanting:
                self._draft(wanting, times)
        except Exception:
            logger.exception("the draft model failed; no more tokens are drafted with it")
            self.is_broken = True
        return times

    def judge(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn how much of the sequence's last draft was right."""
        state = sequence.draft_state
        assert state is not None
        for is_right in [True] * num_accepted + [False] * (num_accepted < num_drafted):
            state.rate += _RATE_WEIGHT * (is_right - state.rate)
            self.rate += _RATE_WEIGHT / 10 * (is_right - self.rate)
        if sequence.block_table:  # it has not ended
            # The last token of a draft is chosen, but nothing is computed of it.
            num_new = min(num_accepted, num_drafted - 1)
            self._keep(sequence, state.num_computed + num_new)

    def rest(self, states: abc.Sequence[DraftState] = ()) -> None:
        """Note that these sequences do not draft, because it would not pay. In time it is tried
        again."""
        for state in states:
            state.rate += _REST_WEIGHT * (FIRST_RATE - state.rate)
        self.rate += _REST_WEIGHT / 10 * (FIRST_RATE - self.rate)

    def _num_found(self, sequence: Sequence) -> int:
        """Return how many of the sequence's first tokens are in blocks that are computed."""
        num_blocks = 0
        for i in range((len(sequence.token_ids) - 1) // self._block_size):
            content = sequence.hash_of_block(i, self._block_size)
            if self._computed.get(sequence.block_table[i]) != content:
                break
            num_blocks += 1
        return num_blocks * self._block_size

    def _catch_up(self, sequence: Sequence) -> int:
        """Compute tokens of the sequence, but not its last one. Return how many."""
        state = sequence.draft_state
        assert state is not None
        # Another sequence may have computed the same prompt meanwhile.
        state.num_computed = max(state.num_computed, self._num_found(sequence))
        num_tokens = min(self.gap(sequence) - 1, MAX_CATCH_UP)
        if num_tokens > 0 and self._may_compute(sequence):
            self._forward([Scheduled(sequence, state.num_computed, num_tokens, False)])
            self._keep(sequence, state.num_computed + num_tokens)
        return max(0, num_tokens)

    def _may_compute(self, sequence: Sequence) -> bool:
        """False, from now on, if the draft model cannot compute the sequence any further."""
        state, info = sequence.draft_state, self.model.info
        assert state is not None
        token_ids = sequence.token_ids
        if (
            len(token_ids) + self.max_tokens > info.max_model_len
            or max(token_ids[state.num_computed :], default=0) >= info.vocab_size
        ):
            state.is_off = True
        return not state.is_off

    def _keep(self, sequence: Sequence, num_computed: int) -> None:
        """Note that the sequence's first tokens are computed, and so are the blocks they fill."""
        state = sequence.draft_state
        assert state is not None
        for i in range(state.num_computed // self._block_size, num_computed // self._block_size):
            content = sequence.hash_of_block(i, self._block_size)
            self._computed[sequence.block_table[i]] = content
        state.num_computed = num_computed

    def _draft(self, items: list[Scheduled], times: PassTime) -> None:
        """Choose one more token for all items in each pass, until each has as many as it wants."""
        live = [_Draft(item) for item in items if self._may_compute(item.sequence)]
        drafts = [*live]
        try:
            while live:
                start = self._clock()
                num_rows = len(live)
                num_tokens = self._extend(live)
                live = [draft for draft in live if not draft.is_done]
                seconds = self._clock() - start
                if num_tokens <= 2 * num_rows:
                    times.passes.append((num_rows, seconds))
                else:
                    times.catch_up_tokens += num_tokens
                    times.catch_up_seconds += seconds
        finally:
            for draft in drafts:
                draft.finish()

    def _extend(self, drafts: "list[_Draft]") -> int:
        """Choose a token for each draft. Return how many tokens were computed for that."""
        items, num_tokens = [], 0
        for draft in drafts:
            sequence, state = draft.item.sequence, draft.draft_state
            num_new = len(sequence.token_ids) - state.num_computed
            items.append(Scheduled(sequence, state.num_computed, num_new, True))
            num_tokens += num_new
        logits = self._fitted(self._forward(items))
        chosen = self._sampler.launch(logits, [draft.sampling for draft in drafts]).read()
        for row, draft in enumerate(drafts):
            if not draft.tokens:
                self._keep(draft.item.sequence, draft.num_known)
            draft.draft_state.num_computed = draft.num_known + len(draft.tokens)
            draft.append(chosen.token_ids[row], self._end_ids)
        return num_tokens

    def _forward(self, items: list[Scheduled]) -> Array:
        for item in items:  # what they held before is overwritten
            first, table = item.start // self._block_size, item.sequence.block_table
            for block_id in table[first : -(-item.context_len // self._block_size)]:
                self._computed.pop(block_id, None)
        with self._place.computing():
            return self.model.forward(self._place.batch(items, self._block_size, None))

    def _fitted(self, logits: Array) -> Array:
        """Return logits as the sampler takes them, float32[R, vocab_size]. Tokens that the draft
        model lacks are impossible."""
        values: np.ndarray = np.asarray(logits, dtype=np.float32)
        num_rows, width = values.shape
        if width != self._vocab_size:
            shared = min(width, self._vocab_size)
            wide = np.full((num_rows, self._vocab_size), -np.inf, dtype=np.float32)
            wide[:, :shared] = values[:, :shared]
            values = wide
        if not self._takes_tensors:
            return values
        import torch

        return torch.from_numpy(values)


class _Draft:
    """A draft of one item while it is made. Its tokens stand in the sequence meanwhile."""

    def __init__(self, item: Scheduled) -> None:
        sequence = item.sequence
        state = sequence.draft_state
        assert state is not None
        self.item = item
        self.draft_state: DraftState = state
        self.num_known = len(sequence.token_ids)
        self.tokens: list[int] = []
        self.sampling = _without_logprobs(sequence.sampling)
        self.is_done = False

    def append(self, token_id: int, end_ids: frozenset[int]) -> None:
        """Add a chosen token; -1: there is none.

        A token that ends the answer is left out: no token comes after it, so there is nothing to
        gain from it.
        """
        params = self.sampling.params
        is_end = token_id in end_ids and not params.ignore_eos
        self.is_done = token_id < 0 or is_end or token_id in params.stop_token_ids
        if self.is_done:
            return
        (self.sampling,) = self.sampling.ahead([token_id])
        constraint = self.sampling.constraint
        if constraint is not None and constraint.is_finished:
            self.is_done = True
            return
        self.tokens.append(token_id)
        self.item.sequence.token_ids.append(token_id)
        self.is_done = len(self.tokens) >= self.item.num_wanted

    def finish(self) -> None:
        """Give the item its draft, and take the tokens out of the sequence."""
        del self.item.sequence.token_ids[self.num_known :]
        self.draft_state.num_computed = min(self.draft_state.num_computed, self.num_known)
        self.item.draft = tuple(self.tokens)


def _without_logprobs(state: SamplingState) -> SamplingState:
    if state.params.top_logprobs is None:
        return state
    return replace(state, params=replace(state.params, top_logprobs=None))
