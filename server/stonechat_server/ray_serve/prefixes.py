"""Chooses the replica for a prompt: the one that has its beginning in the cache, or a free one.

The rule: a prompt of which at least half has been seen belongs to the replica that saw it, unless
that one has much more to do than the others. Any other prompt goes to the replica with the fewest
requests. Where these are equal, the one that saw the most of the prompt gets it, and else the hash
of the prompt and the replica's name decides, so that all ingresses agree.
"""

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

TOKENS_PER_HASH = 16
MAX_HASHES = 512
"""Prompts that are equal in so many pieces count as equal."""
HASH_SIZE = 8


def prompt_hashes(token_ids: Sequence[int], salt: str = "") -> bytes:
    """The chained hashes of the whole pieces of a prompt, `HASH_SIZE` bytes each.

    Two prompts that begin alike, and have the same salt, have equal hashes for that beginning.
    """
    num_pieces = min(len(token_ids) // TOKENS_PER_HASH, MAX_HASHES)
    parent = hashlib.blake2b(salt.encode(), digest_size=HASH_SIZE).digest()
    hashes = []
    for start in range(0, num_pieces * TOKENS_PER_HASH, TOKENS_PER_HASH):
        piece = array("q", token_ids[start : start + TOKENS_PER_HASH]).tobytes()
        parent = hashlib.blake2b(parent + piece, digest_size=HASH_SIZE).digest()
        hashes.append(parent)
    return b"".join(hashes)


def split_hashes(data: bytes) -> list[bytes]:
    """The single hashes of `prompt_hashes`."""
    return [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]


class PrefixTable:
    """Remembers which replica saw which beginnings of prompts. Old ones are forgotten."""

    def __init__(
        self, max_entries: int = 500_000, load_factor: float = 1.25, load_slack: int = 4
    ) -> None:
        """A replica may have `load_factor` times the mean of requests and `load_slack` more, and
        still gets the prompts whose beginnings it has."""
        self._max_entries = max_entries
        self._load_factor = load_factor
        self._load_slack = load_slack
        self._replica_of: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replica_of)

    def note(self, hashes: Sequence[bytes], replica: str) -> None:
        """Remember that `replica` has seen this prompt."""
        for content in reversed(hashes):  # the beginning is used last, and forgotten last
            self._replica_of[content] = replica
            self._replica_of.move_to_end(content)
        while len(self._replica_of) > self._max_entries:
            self._replica_of.popitem(last=False)

    def note_report(self, hashes: Iterable[bytes], replica: str) -> None:
        """Remember what a replica says it has seen, from any ingress. Own knowledge is newer."""
        self.note([content for content in hashes if content not in self._replica_of], replica)

    def rank(self, hashes: Sequence[bytes], loads: Mapping[str, int]) -> list[str]:
        """The replicas in the order in which they should be tried.

        `loads` are the running requests of each replica that there is.
        """
        depths = self._depths(hashes, loads)
        limit = math.ceil(self._load_factor * sum(loads.values()) / len(loads)) + self._load_slack

        def order(replica: str) -> tuple[bool, int, int, bytes]:
            depth, load = depths.get(replica, 0), loads[replica]
            has_most = 2 * depth >= len(hashes) > 0 and load < limit
            return (
                not has_most,
                -depth if has_most else load,
                load if has_most else -depth,
                hashlib.blake2b(replica.encode() + b"".join(hashes[:1]), digest_size=8).digest(),
            )

        return sorted(loads, key=order)

    def _depths(self, hashes: Sequence[bytes], loads: Mapping[str, int]) -> dict[str, int]:
        """How many pieces of the prompt each replica saw. Those that saw none are left out."""
        depths: dict[str, int] = {}
        for depth in range(len(hashes), 0, -1):
            replica = self._replica_of.get(hashes[depth - 1])
            if replica is not None and replica in loads:
                depths.setdefault(replica, depth)
        return depths
