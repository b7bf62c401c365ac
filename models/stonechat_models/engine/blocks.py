"""The blocks of the KV cache: reference counts, the order of reuse, and the prefix cache.

The prefix cache finds blocks by chained hashes of their content, so that prompts with the same
beginning share its blocks.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT = b"stonechat"


def root_hash(salt: str, adapter: str = "") -> bytes:
    """Return the parent hash of a sequence's first block.

    Sequences of different salts share no blocks. Neither do those of different adapters, whose
    keys and values differ.
    """
    person = hashlib.blake2b(adapter.encode(), digest_size=16).digest() if adapter else b""
    return hashlib.blake2b(salt.encode(), digest_size=16, key=ROOT, person=person).digest()


def block_hash(parent: bytes, token_ids: Sequence[int], images: bytes = b"") -> bytes:
    """Return the hash of a full block after `parent`: 16 bytes, so no collision is expected.

    `images`: what tells its tokens from others with the same ids.
    """
    content = parent + array("q", token_ids).tobytes() + images
    return hashlib.blake2b(content, digest_size=16).digest()


class PrefixCache:
    """Finds blocks by the hash of their content. A free block stays listed until it is reused."""

    def __init__(self) -> None:
        self._block_of_hash: dict[bytes, int] = {}
        self._hash_of_block: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of_hash)

    def find(self, content: bytes) -> int | None:
        return self._block_of_hash.get(content)

    def holds(self, block_id: int) -> bool:
        return block_id in self._hash_of_block

    def insert(self, content: bytes, block_id: int) -> bool:
        """List a block. Return False if another block already holds this content."""
        if content in self._block_of_hash:
            return False
        self._block_of_hash[content] = block_id
        self._hash_of_block[block_id] = content
        return True

    def evict(self, block_id: int) -> None:
        """Remove a block that will be overwritten. Unlisted blocks are ignored."""
        content = self._hash_of_block.pop(block_id, None)
        if content is not None:
            del self._block_of_hash[content]

    def clear(self) -> None:
        self._block_of_hash.clear()
        self._hash_of_block.clear()


class BlockPool:
    """Allocates block ids `0 … num_blocks - 1`.

    Invariant: a block is free exactly when its reference count is 0. A free block may still be
    listed in the prefix cache; it is evicted from there only when it is allocated again. Free
    blocks that cache nothing are reused first, then the block that was freed longest ago.
    """

    def __init__(self, num_blocks: int, prefix_cache: PrefixCache | None) -> None:
        self.num_blocks = num_blocks
        self.prefix_cache = prefix_cache
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

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
            if self.prefix_cache is not None:
                self.prefix_cache.evict(block_id)
            assert self._ref_counts[block_id] == 0, "a free block is referenced"
            self._ref_counts[block_id] = 1
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference per block. A free block, found in the prefix cache, is free no more."""
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
                if self.prefix_cache is None or not self.prefix_cache.holds(block_id):
                    self._free.move_to_end(block_id, last=False)

    def check_integrity(self, block_tables: Iterable[Iterable[int]]) -> None:
        """Raise AssertionError if the reference counts differ from those in `block_tables`."""
        counts = [0] * self.num_blocks
        for block_ids in block_tables:
            for block_id in block_ids:
                counts[block_id] += 1
        assert counts == self._ref_counts, "reference counts differ from the block tables"
        assert set(self._free) == {i for i, c in enumerate(counts) if c == 0}, "free list is wrong"
