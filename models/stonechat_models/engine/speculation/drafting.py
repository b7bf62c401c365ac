"""Finds room for draft tokens in a step. Only items of sequences that draft come here."""

from stonechat_models.engine.cache.blocks import BlockPool
from stonechat_models.engine.prompts.lookup import AdaptiveDrafter, Drafter
from stonechat_models.engine.sequence import DraftState, Scheduled, Sequence

MAX_DRAFT_TOKENS_PER_STEP = 128
"""At most this many draft tokens per step: verifying more costs more time than it saves."""


def max_draft_tokens(max_batch_tokens: int) -> int:
    """Return how many draft tokens a step has at most. Half of the budget is left to prompts."""
    return min(MAX_DRAFT_TOKENS_PER_STEP, max_batch_tokens // 2)


class Drafting:
    """Adds draft tokens to items from tokens and blocks that no other sequence needs."""

    def __init__(
        self, pool: BlockPool, running: list[Sequence], block_size: int, max_batch_tokens: int
    ) -> None:
        """`running` are the scheduler's running sequences."""
        self._pool = pool
        self._running = running
        self._block_size = block_size
        self.max_tokens = max_draft_tokens(max_batch_tokens)

    def must_wait(self, sequence: Sequence) -> bool:
        """True if the tokens in flight must be read first: they verify a draft, or the next draft
        depends on them. Only for sequences with tokens in flight."""
        drafter = sequence.drafter
        may_draft = self._max_per_sequence() > 0 and drafter is not None and drafter.has_match
        return may_draft or bool(sequence.in_flight[-1].draft)

    def add_draft(self, item: Scheduled, drafter: Drafter, budget: int) -> int:
        """Add draft tokens to the item, at most `budget`, with blocks for them. Return how many."""
        if not item.reaches_end or item.depends_on is not None:
            return 0
        is_adaptive = isinstance(drafter, AdaptiveDrafter)
        limit = self.max_tokens if is_adaptive else self._max_per_sequence()
        item.draft = drafter.draft(min(limit, self._room(item, budget)))
        self._cover(item, len(item.draft))
        return len(item.draft)

    def want_draft(self, item: Scheduled, state: DraftState, budget: int) -> int:
        """Let the draft model add tokens to the item later, at most `budget`. Return how many."""
        if item.reaches_end and item.depends_on is None:
            item.num_wanted = min(state.length, self._room(item, budget))
            self._cover(item, item.num_wanted)
        return item.num_wanted

    def _room(self, item: Scheduled, budget: int) -> int:
        """How many draft tokens there is room for, in blocks, budget and answer."""
        sequence, num_others = item.sequence, len(self._running) - 1
        num_blocks = len(sequence.block_table) + max(0, self._pool.num_free - num_others)
        return max(
            0,
            min(
                budget - num_others,
                num_blocks * self._block_size - item.context_len,
                sequence.max_tokens - sequence.num_output_tokens - 1,
            ),
        )

    def _cover(self, item: Scheduled, num_drafts: int) -> None:
        """Take blocks for the item's tokens and these draft tokens behind them."""
        table, num_tokens = item.sequence.block_table, item.start + item.num_tokens + num_drafts
        num_new_blocks = -(-num_tokens // self._block_size) - len(table)
        if num_new_blocks > 0:
            table.extend(self._pool.allocate(num_new_blocks))

    def _max_per_sequence(self) -> int:
        return max(0, self.max_tokens // len(self._running) - 1)
