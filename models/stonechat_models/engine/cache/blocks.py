"""The blocks of the KV cache: reference counts, the order of reuse, and the prefix cache."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable

from stonechat_models.engine.cache.state_slots import StateSlots
from stonechat_models.engine.sequence import Sequence


class BlockPool:
    """Allocates block ids `0 … num_blocks - 1`, and finds blocks by the hash of their content.

    Invariant: a block is free exactly when its reference count is 0. A free block is found until it
    is allocated again. Free blocks without a listed content are reused first, then the block that
    was freed longest ago.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of_hash: dict[bytes, int] = {}
        self._hash_of_block: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free)

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """Return how many of the blocks are free."""
        return sum(map(self._free.__contains__, block_ids))

    def allocate(self, num_blocks: int) -> list[int]:
        """Return blocks to write to, each with one reference. The caller has checked `num_free`."""
        block_ids = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block_id in block_ids:
            content = self._hash_of_block.pop(block_id, None)
            if content is not None:
                del self._block_of_hash[content]
            assert self._ref_counts[block_id] == 0, "a free block is referenced"
            self._ref_counts[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference per block. A free block, found by its content, is free no more."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del self._free[block_id]
            self._ref_counts[block_id] += 1

    def release(self, block_ids: Iterable[int]) -> None:
        """Drop one reference per block. The end of a cached prefix is reused before its start."""
        for block_id in reversed(list(block_ids)):
            self._ref_counts[block_id] -= 1
            assert self._ref_counts[block_id] >= 0, "a block was released twice"
            if self._ref_counts[block_id] == 0:
                self._free[block_id] = None
                if block_id not in self._hash_of_block:
                    self._free.move_to_end(block_id, last=False)

    def find(self, content: bytes) -> int | None:
        return self._block_of_hash.get(content)

    def insert(self, content: bytes, block_id: int) -> bool:
        """List a block. Return False if another block already holds this content."""
        if content in self._block_of_hash:
            return False
        self._block_of_hash[content] = block_id
        self._hash_of_block[block_id] = content
        return True

    def check_integrity(self, block_tables: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError if the reference counts differ from those in `block_tables`."""
        counts = [0] * self.num_blocks
        for block_ids in block_tables:
            for block_id in block_ids:
                counts[block_id] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        assert set(self._free) == {i for i, c in enumerate(counts) if c == 0}, "free list is wrong"


class PrefixCache:
    """Finds computed blocks of other sequences that begin alike."""

    def __init__(
        self, pool: BlockPool, block_size: int, states: StateSlots | None, *, is_on: bool
    ) -> None:
        """`states`: see `Scheduler`. If it is not on, nothing is found."""
        self.num_queried_tokens = self.num_hit_tokens = 0
        """Tokens of prompts, and those of them that were found."""
        self._pool = pool
        self._block_size = block_size
        self._states = states
        self._is_on = is_on

    def find(self, sequence: Sequence) -> list[int]:
        """Return the blocks of the longest cached prefix.

        The last token is never part of it: it is computed again, for its logits. Nor are tokens of
        a prompt whose log-probabilities are still wanted.
        """
        block_ids: list[int] = []
        if not self._is_on:
            return block_ids
        known = sequence.group.prompt_logprobs
        num_tokens = len(sequence.token_ids) - 1 if known is None else len(known)
        for i in range(num_tokens // self._block_size):
            block_id = self._pool.find(sequence.hash_of_block(i, self._block_size))
            if block_id is None:
                break
            block_ids.append(block_id)
        if self._states is not None:
            size = self._block_size
            while block_ids and self._states.find(sequence, len(block_ids) * size) is None:
                block_ids.pop()
        return block_ids

    def take(self, sequence: Sequence, block_ids: list[int]) -> None:
        """Let a sequence begin with these blocks, which were found."""
        self._pool.share(block_ids)
        sequence.block_table = array("i", block_ids)
        sequence.set_computed(len(block_ids) * self._block_size)
        sequence.num_registered_blocks = len(block_ids)
        group = sequence.group
        if group.scheduled_time is None and group.prompt_logprobs is None:
            self.num_queried_tokens += sequence.num_prompt_tokens
            self.num_hit_tokens += sequence.num_computed
            group.num_cached_tokens = sequence.num_computed

    def register(self, sequence: Sequence) -> None:
        """Offer the full blocks of a sequence that are computed."""
        num_full = sequence.num_computed // self._block_size
        if not self._is_on or num_full <= sequence.num_registered_blocks:
            return
        for i in range(sequence.num_registered_blocks, num_full):
            content = sequence.hash_of_block(i, self._block_size)
            is_new = self._pool.insert(content, sequence.block_table[i])
            if is_new and (i + 1) * self._block_size <= sequence.num_prompt_tokens:
                sequence.group.num_cache_written_tokens += self._block_size
        sequence.num_registered_blocks = num_full
