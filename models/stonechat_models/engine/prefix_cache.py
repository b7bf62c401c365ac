"""Chained hashes of full blocks: two prompts that start alike share the blocks they start with."""

import hashlib
from array import array
from collections.abc import Sequence

ROOT = b"stonechat"


def root_hash(salt: str) -> bytes:
    """The parent of a sequence's first block; another salt shares nothing."""
    return hashlib.blake2b(salt.encode(), digest_size=16, key=ROOT).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of one full block that follows `parent`: 16 bytes, so no collision is to be expected."""
    return hashlib.blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


class PrefixCache:
    """Which physical block holds which content. Blocks stay listed while free, until reused."""

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
        """List a block; False when another block already holds this content."""
        if content in self._block_of_hash:
            return False
        self._block_of_hash[content] = block_id
        self._hash_of_block[block_id] = content
        return True

    def evict(self, block_id: int) -> None:
        """Forget a block that is about to be overwritten; unlisted blocks are fine."""
        content = self._hash_of_block.pop(block_id, None)
        if content is not None:
            del self._block_of_hash[content]

    def clear(self) -> None:
        self._block_of_hash.clear()
        self._hash_of_block.clear()
