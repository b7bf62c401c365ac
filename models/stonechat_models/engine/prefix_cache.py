"""Chained hashes of full blocks: two prompts with the same beginning share its blocks."""

import hashlib
from array import array
from collections.abc import Sequence

ROOT = b"stonechat"


def root_hash(salt: str, adapter: str = "") -> bytes:
    """Return the parent hash of a sequence's first block.

    Sequences of different salts share no blocks. Neither do those of different adapters, whose
    keys and values differ.
    """
    person = hashlib.blake2b(adapter.encode(), digest_size=16).digest() if adapter else b""
    return hashlib.blake2b(salt.encode(), digest_size=16, key=ROOT, person=person).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the hash of a full block after `parent`: 16 bytes, so no collision is expected."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


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
