"""Lets the n choices of a request share one prompt. A request with n = 1 does not come here.

The group's first sequence, the leader, computes the prompt while its followers wait. The followers
then fork: they share the prompt's blocks. The group holds a reference to these blocks, its fork
source, as long as one of its sequences waits to run.
"""

from array import array
from bisect import insort

from stonechat_models.engine.cache.blocks import BlockPool
from stonechat_models.engine.sequence import BY_ORDER, Sequence, SequenceGroup


class Forking:
    """Queues the followers of a leader, and gives them the blocks of the prompt."""

    def __init__(self, pool: BlockPool, waiting: list[Sequence]) -> None:
        """`waiting` is the scheduler's queue. Sequences are added to it, never removed."""
        self._pool = pool
        self._waiting = waiting

    def queue_followers(self, leader: Sequence, num_prompt_blocks: int) -> None:
        """Let the followers run: the leader has computed the prompt."""
        group = leader.group
        group.prompt_blocks = leader.block_table[:num_prompt_blocks].tolist()
        self._pool.share(group.prompt_blocks)
        followers, group.followers = group.followers, []
        for sequence in followers:
            insort(self._waiting, sequence, key=BY_ORDER)

    def fork(self, sequence: Sequence) -> tuple[int, int]:
        """Share the prompt's blocks, except the one with its last token, which is copied.

        The last token is computed again, for its logits. It is written to the copy, never to a
        shared block. Returns (source, copy); the caller has checked that a block is free.
        """
        *shared, last = sequence.group.prompt_blocks
        self._pool.share(shared)
        (copy,) = self._pool.allocate(1)
        sequence.block_table = array("i", [*shared, copy])
        sequence.set_computed(sequence.num_prompt_tokens - 1)
        sequence.num_registered_blocks = len(shared)
        return last, copy

    def leave(self, sequence: Sequence) -> None:
        """Adapt the group to a sequence that has ended.

        If it led and the prompt is not computed, the next sequence leads.
        """
        group = sequence.group
        if sequence in group.followers:
            group.followers.remove(sequence)
        if group.followers and len(group.followers) == len(group.sequences):
            insort(self._waiting, group.followers.pop(0), key=BY_ORDER)
        self.drop_source_if_unneeded(group)

    def drop_source_if_unneeded(self, group: SequenceGroup) -> None:
        """Drop the fork source if no sequence of the group waits."""
        if not any(s in self._waiting for s in group.sequences):
            self._drop_source(group)

    def drop_a_source(self) -> bool:
        """Drop the fork source of the group that waits last. Return False if no group has one.

        Its sequences then compute the prompt again, or find it in the prefix cache.
        """
        for sequence in reversed(self._waiting):
            if sequence.group.prompt_blocks:
                self._drop_source(sequence.group)
                return True
        return False

    def _drop_source(self, group: SequenceGroup) -> None:
        self._pool.release(group.prompt_blocks)
        group.prompt_blocks = []
