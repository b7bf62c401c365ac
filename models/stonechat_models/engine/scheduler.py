"""Decides which sequences compute how many tokens in the next step.

There is one rule. A running sequence has known tokens, some of which are computed. A step gives it
tokens until all known tokens are computed, within one token budget. Prefill in parts, decode, and
recomputation after a preemption are all cases of this rule.
"""

import time
from array import array
from bisect import insort
from dataclasses import dataclass, field

from stonechat_models.engine.cache.blocks import BlockPool, PrefixCache
from stonechat_models.engine.cache.forking import Forking
from stonechat_models.engine.cache.state_slots import StateSlots
from stonechat_models.engine.prompt_rows import PromptRows
from stonechat_models.engine.sequence import BY_ORDER, Scheduled, Sequence, SequenceGroup
from stonechat_models.engine.speculation.drafting import Drafting
from stonechat_models.engine.speculation.speculation import Speculation


@dataclass(slots=True)
class SchedulerOutput:
    """The work of one step. The copies, (source, destination), come before it."""

    scheduled: list[Scheduled] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    state_copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Owns the waiting and the running sequences and all their blocks.

    Decoding sequences come first, so that a long prompt does not stall them; then running
    prefills; then waiting requests by priority and arrival. When blocks run out, the sequence that
    would run last is preempted: it gives up its blocks and is computed again later. Its tokens and
    draws stay the same. If a request of a better priority finds no place, those that run last are
    preempted too.
    """

    def __init__(
        self,
        *,
        num_blocks: int,
        block_size: int,
        max_batch_tokens: int,
        max_num_seqs: int,
        prefix_caching: bool = True,
        states: StateSlots | None = None,
        max_prompt_rows: int = 1 << 30,
        speculation: Speculation | None = None,
    ) -> None:
        """`states`: the slots of recurrent state, for a model that keeps such a state.

        `max_prompt_rows`: see `PromptRows`. `speculation` plans the drafts of each step; None: no
        plan is needed.
        """
        self.block_size = block_size
        self.max_batch_tokens = max_batch_tokens
        self.max_num_seqs = max_num_seqs
        self.states = states
        self.pool = BlockPool(num_blocks)
        self.prefix_cache = PrefixCache(self.pool, block_size, states, is_on=prefix_caching)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        """Both lists are in the order in which the sequences run."""
        self.forking = Forking(self.pool, self.waiting)
        self.drafting = Drafting(self.pool, self.running, block_size, max_batch_tokens)
        self.speculation = speculation
        self.prompt_rows = PromptRows(
            max_prompt_rows, exact_chunks=states is None or states.exact_chunks
        )
        self.num_preemptions = 0

    def add(self, group: SequenceGroup) -> None:
        """Queue the group's leader. The other sequences follow once the prompt is computed."""
        leader, *group.followers = group.sequences
        insort(self.waiting, leader, key=BY_ORDER)

    def schedule(self) -> SchedulerOutput:
        """Choose the work of the next step: of sequences that run, then of those that wait."""
        output = SchedulerOutput()
        waiting, running = self.waiting, self.running
        if waiting and running and waiting[0].order[0] < running[-1].order[0]:
            self._make_way()
        self.prompt_rows.num_left = self.prompt_rows.max_rows
        budget = self._schedule_running(output)
        skipped = 0  # these wait for rows of logits, which the others do not need
        while budget > 0 and skipped < len(self.waiting) and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[skipped]
            known = sequence.group.prompt_logprobs
            if known is not None and self.prompt_rows.must_wait(sequence, known):
                skipped += 1
                continue
            num_tokens = self._admit(sequence, budget, output)
            if num_tokens == 0 and (self.running or not self.forking.drop_a_source()):
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
        sequence.num_computed += item.num_tokens
        if item.reaches_end:
            sequence.num_placeholders -= 1
        self.prefix_cache.register(sequence)
        if sequence.group.followers and sequence.num_computed >= sequence.num_prompt_tokens:
            num_prompt_blocks = self._num_blocks(sequence.num_prompt_tokens)
            self.forking.queue_followers(sequence, num_prompt_blocks)

    def accept_draft_token(self, sequence: Sequence) -> None:
        """Record that a draft token of the step just finished was right: it is computed already."""
        sequence.set_computed(sequence.num_computed + 1)
        self.prefix_cache.register(sequence)

    def cancel(self, item: Scheduled) -> None:
        """Take back an item that will not be computed; the sequence's later items come first."""
        if not item.is_dropped:
            sequence = item.sequence
            last = sequence.in_flight.pop()
            assert last is item, "the last item is taken back first"
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
        if group.followers or group.prompt_blocks:
            self.forking.leave(sequence)

    def check_integrity(self) -> None:
        """Raise AssertionError if a block is leaked, or shared by mistake."""
        sequences = self.running + self.waiting
        groups = {id(s.group): s.group for s in sequences}.values()
        block_tables = [s.block_table for s in sequences] + [g.prompt_blocks for g in groups]
        self.pool.check_integrity(block_tables)
        if self.states is not None:
            self.states.check_integrity([s.state_slot for s in self.running])
        for sequence in sequences:
            assert 0 <= sequence.num_computed <= len(sequence.token_ids)
            assert len(sequence.block_table) >= self._num_blocks(sequence.num_scheduled)
            assert self.states is None or (sequence.state_slot >= 0) == (sequence in self.running)
            num_in_flight = sum(item.num_tokens for item in sequence.in_flight)
            assert sequence.num_scheduled == sequence.num_computed + num_in_flight
            assert sequence.num_placeholders == sum(item.reaches_end for item in sequence.in_flight)

    def _schedule_running(self, output: SchedulerOutput) -> int:
        """Give the running sequences tokens. Return how many tokens the step has left."""
        budget, num_preemptions = self.max_batch_tokens, self.num_preemptions
        remaining = [(sequence.num_remaining, sequence) for sequence in self.running]
        decoding = [pair for pair in remaining if pair[0] == 1]
        prefilling = [pair for pair in remaining if pair[0] > 1]
        if self.speculation is not None:
            may_admit = self.waiting and len(self.running) < self.max_num_seqs
            self.speculation.plan(
                [sequence for _, sequence in decoding], is_alone=not prefilling and not may_admit
            )
        for num_remaining, sequence in decoding + prefilling:
            if budget <= 0:
                break
            # An earlier sequence may have preempted this one.
            if self.num_preemptions == num_preemptions or sequence in self.running:
                budget -= self._extend(sequence, num_remaining, budget, output)
        return budget

    # --- one sequence ---

    def _extend(
        self, sequence: Sequence, num_remaining: int, budget: int, output: SchedulerOutput
    ) -> int:
        """Give a running sequence tokens, and blocks for them. Return how many tokens."""
        num_tokens = self._num_tokens(sequence, num_remaining, budget)
        drafter = sequence.drafter
        if num_tokens == 0:
            return 0
        if drafter is not None and sequence.num_placeholders and self.drafting.must_wait(sequence):
            return 0
        end = sequence.num_scheduled + num_tokens
        if end > len(sequence.block_table) * self.block_size:
            num_new_blocks = self._num_blocks(end) - len(sequence.block_table)
            if not self._make_room(sequence, num_new_blocks, output):
                return 0
            sequence.block_table.extend(self.pool.allocate(num_new_blocks))
        item = self._launch(sequence, num_tokens, num_tokens == num_remaining, output)
        if drafter is not None and drafter.has_match:
            num_tokens += self.drafting.add_draft(item, drafter, budget - num_tokens)
        if sequence.draft_state is not None and sequence.draft_state.length and not item.draft:
            num_tokens += self.drafting.want_draft(item, sequence.draft_state, budget - num_tokens)
        return num_tokens

    def _make_room(self, sequence: Sequence, num_blocks: int, output: SchedulerOutput) -> bool:
        """Preempt the sequences that run last, until `num_blocks` blocks are free.

        Those that are in the step already are spared. Returns False if `sequence` itself had to be
        preempted.
        """
        while num_blocks > self.pool.num_free:
            if self.forking.drop_a_source():
                continue
            spared = {id(item.sequence) for item in output.scheduled}
            evicted = next(s for s in reversed(self.running) if id(s) not in spared)
            self._preempt(evicted)
            if evicted is sequence:
                return False
        return True

    def _make_way(self) -> None:
        """Preempt sequences of a worse priority than that of waiting ones which lack a place.

        Each such waiter takes one place. For the first of them, as many sequences go as have the
        blocks that it lacks, if they have enough.
        """
        # The others may have to wait for rows of logits, whatever is preempted.
        waiters = [s for s in self.waiting if s.group.prompt_logprobs is None]
        num_places = self.max_num_seqs - len(self.running)
        for waiter in waiters:
            if not self.running or self.running[-1].order[0] <= waiter.order[0]:
                break
            if num_places > 0:
                num_places -= 1
            else:
                self._preempt(self.running[-1])
        if waiters:
            self._free_blocks_for(waiters[0])

    def _free_blocks_for(self, waiter: Sequence) -> None:
        worse = [s for s in self.running if s.order[0] > waiter.order[0]]
        cached_ids = self.prefix_cache.find(waiter)
        num_new_blocks = self._num_blocks(len(waiter.token_ids)) - len(cached_ids)
        num_held = sum([len(s.block_table) for s in worse])
        if num_new_blocks + len(cached_ids) > self.pool.num_free + num_held:
            return
        # Those that stay may take a block each in this step, before the waiter does.
        while worse and not self._has_room(
            num_new_blocks + self.pool.num_free_among(cached_ids) + len(self.running)
        ):
            self._preempt(worse.pop())

    def _admit(self, sequence: Sequence, budget: int, output: SchedulerOutput) -> int:
        """Admit a waiting sequence with the blocks of all its known tokens.

        Returns how many tokens it computes; 0 if there are too few blocks to admit it, or if the
        step has too few tokens left for an image that is computed in one piece.
        """
        group = sequence.group
        if group.prompt_blocks and self._may_fork(sequence):
            if not self._has_room(1):
                return 0
            output.block_copies.append(self.forking.fork(sequence))
        else:
            cached_ids = self.prefix_cache.find(sequence)
            if group.media is not None and group.media.runs:
                most = budget if group.prompt_logprobs is None else self.prompt_rows.num_left
                start = len(cached_ids) * self.block_size
                if not group.media.num_whole(start, min(budget, most)):
                    return 0
            num_new_blocks = self._num_blocks(len(sequence.token_ids)) - len(cached_ids)
            if not self._has_room(num_new_blocks + self.pool.num_free_among(cached_ids)):
                return 0
            self.prefix_cache.take(sequence, cached_ids)
            sequence.block_table.extend(self.pool.allocate(num_new_blocks))
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=BY_ORDER)
        if group.prompt_blocks:
            self.forking.drop_source_if_unneeded(group)
        if group.scheduled_time is None:
            group.scheduled_time = time.monotonic()
        if self.states is not None:
            self._take_state(sequence, self.states, output)
        num_remaining = sequence.num_remaining
        num_tokens = self._num_tokens(sequence, num_remaining, budget)
        self._launch(sequence, num_tokens, num_tokens == num_remaining, output)
        return num_tokens

    def _num_tokens(self, sequence: Sequence, num_remaining: int, budget: int) -> int:
        known = sequence.group.prompt_logprobs
        if known is not None:
            budget = min(budget, self.prompt_rows.max_tokens(sequence, known))
            if budget == 0:
                return 0
        media = sequence.group.media
        if media is not None and media.runs:
            budget = media.num_whole(sequence.num_scheduled, min(budget, num_remaining))
        if self.states is None:
            return num_remaining if num_remaining < budget else budget
        return self.states.num_tokens(sequence, budget)

    def _may_fork(self, sequence: Sequence) -> bool:
        """Whether the sequence, whose group has a fork source, can begin with its last token."""
        if sequence.num_output_tokens:
            return False
        last = sequence.num_prompt_tokens - 1
        return self.states is None or not last or self.states.find(sequence, last) is not None

    def _take_state(self, sequence: Sequence, states: StateSlots, output: SchedulerOutput) -> None:
        """Give an admitted sequence a slot, with the state of its computed tokens."""
        sequence.state_slot = states.allocate()
        sequence.num_state_tokens = sequence.num_computed
        if sequence.num_computed:
            snapshot = states.find(sequence, sequence.num_computed)
            assert snapshot is not None, "a cached prefix ends at a snapshot"
            output.state_copies.append((snapshot, sequence.state_slot))

    def _launch(
        self, sequence: Sequence, num_tokens: int, reaches_end: bool, output: SchedulerOutput
    ) -> Scheduled:
        if self.states is not None and (copy := self.states.keep(sequence)) is not None:
            output.state_copies.append(copy)
        needs_placeholder = reaches_end and sequence.num_placeholders > 0
        item = Scheduled(
            sequence,
            sequence.num_scheduled,
            num_tokens,
            reaches_end,
            sequence.in_flight[-1] if needs_placeholder else None,
        )
        sequence.num_scheduled += num_tokens
        if reaches_end:
            sequence.num_placeholders += 1
        sequence.in_flight.append(item)
        output.scheduled.append(item)
        known = sequence.group.prompt_logprobs
        if known is not None:
            self.prompt_rows.take(item, known)
        return item

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free(sequence)
        if sequence.group.media is not None:
            sequence.group.media.features.clear()
        sequence.num_registered_blocks = 0
        self.num_preemptions += 1
        insort(self.waiting, sequence, key=BY_ORDER)

    # --- blocks ---

    def _has_room(self, num_blocks: int) -> bool:
        """True if the blocks are free and one per running sequence stays free.

        Each running sequence may soon need a block. Without the reserve it would be preempted.
        """
        return num_blocks + len(self.running) <= self.pool.num_free

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

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
        sequence.block_table = array("i")
        if sequence.draft_state is not None:
            sequence.draft_state.num_computed = -1
        if self.states is not None and sequence.state_slot >= 0:
            self.states.release(sequence.state_slot)
            sequence.state_slot = -1
