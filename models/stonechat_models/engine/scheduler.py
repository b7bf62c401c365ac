"""Decides which sequences compute how many tokens in the next step.

There is one rule. A running sequence has known tokens, some of which are computed. A step gives it
tokens until all known tokens are computed, within one token budget. Prefill in parts, decode, and
recomputation after a preemption are all cases of this rule.
"""

from bisect import insort
from dataclasses import dataclass, field

from stonechat_models.engine.block_pool import BlockPool
from stonechat_models.engine.prefix_cache import PrefixCache
from stonechat_models.engine.sequence import Scheduled, Sequence, SequenceGroup

MAX_DRAFT_TOKENS_PER_STEP = 128
"""At most this many draft tokens per step: verifying more costs more time than it saves."""


@dataclass(slots=True)
class SchedulerOutput:
    """The work of one step. `block_copies`, (source, destination), come before it."""

    scheduled: list[Scheduled] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Owns the waiting and the running sequences and all their blocks.

    Decoding sequences come first, so that a long prompt does not stall them; then running
    prefills; then waiting requests by priority and arrival. When blocks run out, the sequence that
    would run last is preempted: it gives up its blocks and is computed again later. Its tokens and
    draws stay the same.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_batch_tokens: int,
        max_num_seqs: int,
        prefix_caching: bool = True,
    ) -> None:
        self.block_size = block_size
        self.max_batch_tokens = max_batch_tokens
        self.max_num_seqs = max_num_seqs
        self.prefix_cache = PrefixCache() if prefix_caching else None
        self.pool = BlockPool(num_blocks, self.prefix_cache)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: SequenceGroup) -> None:
        """Queue the request's leader. Its other sequences follow once the prompt is computed."""
        self._enqueue(request.sequences[0])
        for sequence in request.sequences[1:]:
            sequence.is_waiting_for_leader = True

    def schedule(self) -> SchedulerOutput:
        output = SchedulerOutput()
        budget = self.max_batch_tokens
        num_preemptions = self.num_preemptions
        for sequence in sorted(self.running, key=_decode_first):
            if budget == 0:
                break
            # An earlier sequence may have preempted this one.
            if self.num_preemptions == num_preemptions or sequence in self.running:
                budget -= self._schedule_running(sequence, budget, output)
        while budget > 0 and self.waiting and len(self.running) < self.max_num_seqs:
            num_tokens = self._admit(self.waiting[0], budget, output)
            if num_tokens == 0 and (self.running or not self._drop_a_fork_source()):
                break
            budget -= num_tokens
        return output

    def finish_step(self, item: Scheduled) -> None:
        """Record that the item's tokens are computed, and offer its full blocks to the cache.

        Steps finish in the order in which they were scheduled.
        """
        sequence = item.sequence
        assert sequence.in_flight[0] is item, "steps finish in order"
        del sequence.in_flight[0]
        item.depends_on = None  # else each item keeps all earlier ones alive
        was_prefilling = sequence.num_computed < sequence.num_prompt_tokens
        sequence.num_computed += item.num_tokens
        sequence.num_placeholders -= item.reaches_end
        self._register_blocks(sequence)
        if was_prefilling and sequence.num_computed >= sequence.num_prompt_tokens:
            self._release_followers(sequence)

    def accept_draft_token(self, sequence: Sequence) -> None:
        """Record that a draft token of the step just finished was right: it is computed already."""
        sequence.set_computed(sequence.num_computed + 1)
        self._register_blocks(sequence)

    def cancel(self, item: Scheduled) -> None:
        """Take back an item that will not be computed; the sequence's later items come first."""
        if not item.is_dropped:
            sequence = item.sequence
            assert sequence.in_flight.pop() is item, "the last item is taken back first"
            sequence.num_scheduled -= item.num_tokens
            sequence.num_placeholders -= item.reaches_end
            item.is_dropped = True

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence, whatever its state, and release its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)
        group = sequence.group
        group.sequences.remove(sequence)
        self._promote(group)
        self._drop_unneeded_fork_source(group)

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked, or shared by mistake."""
        sequences = self.running + self.waiting
        groups = {id(s.group): s.group for s in sequences}.values()
        block_tables = [s.block_table for s in sequences] + [g.prompt_blocks for g in groups]
        self.pool.check_integrity(block_tables)
        for sequence in sequences:
            assert 0 <= sequence.num_computed <= len(sequence.token_ids)
            assert len(sequence.block_table) >= self._num_blocks(sequence.num_scheduled)
            num_in_flight = sum(item.num_tokens for item in sequence.in_flight)
            assert sequence.num_scheduled == sequence.num_computed + num_in_flight
            assert sequence.num_placeholders == sum(item.reaches_end for item in sequence.in_flight)

    # --- one sequence ---

    def _schedule_running(self, sequence: Sequence, budget: int, output: SchedulerOutput) -> int:
        num_tokens = min(sequence.num_remaining, budget)
        if num_tokens == 0 or self._awaits_draft(sequence):
            return 0
        num_new_blocks = self._num_blocks(sequence.num_scheduled + num_tokens) - len(
            sequence.block_table
        )
        while num_new_blocks > self.pool.num_free:
            if self._drop_a_fork_source():
                continue
            scheduled_ids = {id(item.sequence) for item in output.scheduled}
            candidates = [s for s in self.running if id(s) not in scheduled_ids]
            evicted = max(candidates, key=_order)
            self._preempt(evicted)
            if evicted is sequence:
                return 0
        self._grow(sequence, num_new_blocks)
        self._launch(sequence, num_tokens, output)
        return num_tokens + self._add_draft(output.scheduled[-1], budget - num_tokens)

    def _max_draft(self) -> int:
        """Return how many tokens each sequence may draft. Half the budget is left to prompts."""
        num_tokens = min(MAX_DRAFT_TOKENS_PER_STEP, self.max_batch_tokens // 2)
        return max(0, num_tokens // len(self.running) - 1)

    def _awaits_draft(self, sequence: Sequence) -> bool:
        """True if the tokens in flight must be read first: they verify a draft, or the next draft
        depends on them."""
        if sequence.drafter is None or not sequence.num_placeholders:
            return False
        may_draft = self._max_draft() > 0 and sequence.drafter.has_match
        return may_draft or bool(sequence.in_flight[-1].draft)

    def _add_draft(self, item: Scheduled, budget: int) -> int:
        """Add a draft to the item from tokens and blocks that no other sequence needs.

        Returns the draft's length.
        """
        sequence = item.sequence
        if sequence.drafter is None or not item.reaches_end or item.depends_on is not None:
            return 0
        num_others = len(self.running) - 1
        room = (len(sequence.block_table) + max(0, self.pool.num_free - num_others)) * (
            self.block_size
        )
        limit = min(
            self._max_draft(),
            budget - num_others,
            room - item.context_len,
            sequence.max_tokens - sequence.num_output_tokens - 1,
        )
        item.draft = sequence.drafter.draft(max(0, limit))
        self._grow(sequence, self._num_blocks(item.context_len) - len(sequence.block_table))
        return len(item.draft)

    def _admit(self, sequence: Sequence, budget: int, output: SchedulerOutput) -> int:
        """Admit a waiting sequence with the blocks of all its known tokens.

        Returns how many tokens it computes; 0 if there are too few blocks to admit it.
        """
        if _can_fork(sequence):
            if not self._has_room(1):
                return 0
            self._fork(sequence, output)
        else:
            cached_ids = self._cached_blocks(sequence)
            num_new_blocks = self._num_blocks(len(sequence.token_ids)) - len(cached_ids)
            num_revived = sum(self.pool.ref_count(block_id) == 0 for block_id in cached_ids)
            if not self._has_room(num_new_blocks + num_revived):
                return 0
            self._take_cached(sequence, cached_ids)
            self._grow(sequence, num_new_blocks)
        self.waiting.pop(0)
        self.running.append(sequence)
        self._drop_unneeded_fork_source(sequence.group)
        sequence.group.mark_scheduled()
        num_tokens = min(sequence.num_remaining, budget)
        self._launch(sequence, num_tokens, output)
        return num_tokens

    def _launch(self, sequence: Sequence, num_tokens: int, output: SchedulerOutput) -> None:
        reaches_end = num_tokens == sequence.num_remaining
        needs_placeholder = reaches_end and sequence.num_placeholders > 0
        item = Scheduled(
            sequence,
            sequence.num_scheduled,
            num_tokens,
            reaches_end,
            sequence.in_flight[-1] if needs_placeholder else None,
        )
        sequence.num_scheduled += num_tokens
        sequence.num_placeholders += reaches_end
        sequence.in_flight.append(item)
        output.scheduled.append(item)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        sequence.num_registered_blocks = 0
        self.num_preemptions += 1
        self._enqueue(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    # --- blocks ---

    def _has_room(self, num_blocks: int) -> bool:
        """True if the blocks are free and one per running sequence stays free.

        Each running sequence may soon need a block. Without the reserve it would be preempted.
        """
        return num_blocks + len(self.running) <= self.pool.num_free

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _grow(self, sequence: Sequence, num_blocks: int) -> None:
        for _ in range(num_blocks):
            sequence.block_table.append(self.pool.allocate())

    def _free(self, sequence: Sequence) -> None:
        """Release the blocks and drop the items in flight.

        Steps in flight still write to the blocks, but before any later step does.
        """
        for item in sequence.in_flight:
            item.is_dropped = True
        sequence.in_flight = []
        sequence.num_placeholders = 0
        sequence.set_computed(0)
        self.pool.release(sequence.block_table)
        sequence.block_table = []

    def _cached_blocks(self, sequence: Sequence) -> list[int]:
        """Return the blocks of the longest cached prefix.

        The last token is never part of it: it is computed again, for its logits.
        """
        block_ids: list[int] = []
        if self.prefix_cache is None:
            return block_ids
        for i in range((len(sequence.token_ids) - 1) // self.block_size):
            block_id = self.prefix_cache.find(sequence.hash_of_block(i, self.block_size))
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def _take_cached(self, sequence: Sequence, block_ids: list[int]) -> None:
        for block_id in block_ids:
            self.pool.share(block_id)
        sequence.block_table = block_ids
        sequence.set_computed(len(block_ids) * self.block_size)
        sequence.num_registered_blocks = len(block_ids)
        group = sequence.group
        if group.scheduled_time is None:
            self.num_queried_tokens += sequence.num_prompt_tokens
            self.num_hit_tokens += sequence.num_computed
            group.num_cached_tokens = sequence.num_computed

    def _register_blocks(self, sequence: Sequence) -> None:
        if self.prefix_cache is None:
            return
        num_full = sequence.num_computed // self.block_size
        for i in range(sequence.num_registered_blocks, num_full):
            content = sequence.hash_of_block(i, self.block_size)
            is_new = self.prefix_cache.insert(content, sequence.block_table[i])
            if is_new and (i + 1) * self.block_size <= sequence.num_prompt_tokens:
                sequence.group.num_cache_written_tokens += self.block_size
        sequence.num_registered_blocks = max(num_full, sequence.num_registered_blocks)

    # --- n > 1: followers fork from the computed prompt ---

    def _release_followers(self, leader: Sequence) -> None:
        followers = [s for s in leader.group.sequences if s.is_waiting_for_leader]
        if not followers:
            return
        group = leader.group
        if not group.prompt_blocks:
            group.prompt_blocks = leader.block_table[: self._num_blocks(leader.num_prompt_tokens)]
            for block_id in group.prompt_blocks:
                self.pool.share(block_id)
        for sequence in followers:
            sequence.is_waiting_for_leader = False
            self._enqueue(sequence)

    def _fork(self, sequence: Sequence, output: SchedulerOutput) -> None:
        """Share the prompt's blocks, except the one with its last token, which is copied.

        The last token is computed again, for its logits. It is written to the copy, never to a
        shared block.
        """
        source = sequence.group.prompt_blocks
        for block_id in source[:-1]:
            self.pool.share(block_id)
        copy = self.pool.allocate()
        output.block_copies.append((source[-1], copy))
        sequence.block_table = [*source[:-1], copy]
        sequence.set_computed(sequence.num_prompt_tokens - 1)
        sequence.num_registered_blocks = len(source) - 1

    def _promote(self, group: SequenceGroup) -> None:
        """If the leader ended before the prompt was computed, the next sequence leads."""
        if group.sequences and all(s.is_waiting_for_leader for s in group.sequences):
            group.sequences[0].is_waiting_for_leader = False
            self._enqueue(group.sequences[0])

    def _drop_unneeded_fork_source(self, group: SequenceGroup) -> None:
        if group.prompt_blocks and not any(s in self.waiting for s in group.sequences):
            self._drop_prompt_blocks(group)

    def _drop_prompt_blocks(self, group: SequenceGroup) -> None:
        self.pool.release(group.prompt_blocks)
        group.prompt_blocks = []

    def _drop_a_fork_source(self) -> bool:
        for sequence in reversed(self.waiting):
            if sequence.group.prompt_blocks:
                self._drop_prompt_blocks(sequence.group)
                return True
        return False


def _can_fork(sequence: Sequence) -> bool:
    return bool(sequence.group.prompt_blocks) and sequence.num_output_tokens == 0


def _order(sequence: Sequence) -> tuple[tuple[int, float, str], int]:
    return (sequence.group.sort_key, sequence.index)


def _decode_first(sequence: Sequence) -> tuple[bool, tuple[tuple[int, float, str], int]]:
    return (sequence.num_remaining > 1, _order(sequence))
