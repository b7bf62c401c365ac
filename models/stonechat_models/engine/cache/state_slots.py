"""The slots of recurrent state: one per running sequence, and snapshots of prefixes.

Layers such as linear attention, state-space models and short convolutions keep a state of fixed
size per sequence, which each token changes. The state after a prefix cannot be found in the KV
cache. So a snapshot is kept at some positions of a prompt, and a cached prefix ends at a snapshot.
"""

from collections import OrderedDict

from stonechat_models.engine.sequence import Sequence

SNAPSHOT_INTERVAL = 1024
"""Tokens between snapshots of a long prompt."""


class StateSlots:
    """Allocates slots `0 … num_slots - 1`. The first `max_num_seqs` are for running sequences.

    The snapshot that was used longest ago makes room for a new one.
    """

    def __init__(
        self,
        num_slots: int,
        max_num_seqs: int,
        block_size: int,
        *,
        exact_chunks: bool,
        prefix_caching: bool,
    ) -> None:
        """Without `exact_chunks`, a prompt is computed in one piece and no snapshot is kept.

        Without `prefix_caching`, snapshots are kept only for the other choices of a request.
        """
        self.exact_chunks = exact_chunks
        self._prefix_caching = prefix_caching
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._free = list(range(max_num_seqs))
        self._released: list[int] = []
        self._free_snapshots = list(range(max_num_seqs, num_slots)) if exact_chunks else []
        self._snapshots: OrderedDict[bytes, int] = OrderedDict()

    def allocate(self) -> int:
        """Return a slot for a sequence. At most `max_num_seqs` may run."""
        slot = self._free.pop()
        if slot in self._released:
            self._released.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Take back the slot of a sequence that does not run any more."""
        assert slot not in self._free, "a slot was released twice"
        self._free.append(slot)
        self._released.append(slot)

    def take_released(self) -> list[int]:
        """Return the free slots that were released since the last call: their states may go."""
        released, self._released = self._released, []
        return released

    def num_tokens(self, sequence: Sequence, budget: int) -> int:
        """How many tokens the sequence's next item has: up to the next position of a snapshot."""
        if not self.exact_chunks:
            return sequence.num_remaining
        start = sequence.num_scheduled
        num_tokens = min(sequence.num_remaining, budget)
        stops = [s - start for s in self._stops(sequence, start) if s > start]
        return min([num_tokens, *stops])

    def keep(self, sequence: Sequence) -> tuple[int, int] | None:
        """Keep a snapshot if one is due at the start of the sequence's next item.

        Returns (source, snapshot), which the caller copies before the step.
        """
        position = sequence.num_scheduled
        if not position or position not in self._stops(sequence, position - 1):
            return None
        if sequence.num_state_tokens != position:  # a failed step has left another state
            return None
        key = self._key(sequence, position)
        if key in self._snapshots:
            return None
        if self._free_snapshots:
            slot = self._free_snapshots.pop()
        elif self._snapshots:
            _, slot = self._snapshots.popitem(last=False)
        else:
            return None
        self._snapshots[key] = slot
        return sequence.state_slot, slot

    def find(self, sequence: Sequence, position: int) -> int | None:
        """Return the snapshot of the sequence's first `position` tokens."""
        key = self._key(sequence, position)
        if key in self._snapshots:
            self._snapshots.move_to_end(key)
        return self._snapshots.get(key)

    def check_integrity(self, used: list[int]) -> None:
        """Raise AssertionError if a slot is leaked or shared. `used`: those of all sequences."""
        assert sorted([*used, *self._free]) == list(range(self._max_num_seqs)), "slots are wrong"
        snapshots = [*self._snapshots.values(), *self._free_snapshots]
        assert len(set(snapshots)) == len(snapshots), "a snapshot's slot is shared"

    def _stops(self, sequence: Sequence, start: int) -> list[int]:
        """The positions after `start` where an item of the prompt ends."""
        last = sequence.num_prompt_tokens - 1
        whole_blocks = last // self._block_size * self._block_size
        step = -(-SNAPSHOT_INTERVAL // self._block_size) * self._block_size
        stops = [(start // step + 1) * step, whole_blocks] if self._prefix_caching else []
        if sequence.group.followers:  # they begin with the prompt's last token
            stops.append(last)
        return [stop for stop in stops if start < stop <= last]

    def _key(self, sequence: Sequence, position: int) -> bytes:
        num_blocks = position // self._block_size
        return sequence.hash_of_tokens(num_blocks, position, self._block_size)
