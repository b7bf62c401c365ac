"""The variates of draws: hashes of counters, so there is no generator state."""

import hashlib
import struct
from collections.abc import Sequence

import numpy as np

_INT64_MASK = (1 << 64) - 1


def uniform_variate(seed: int, choice_index: int, position: int) -> float:
    """Return u with 0 < u < 1, the same for the same three integers on every machine.

    u is 52 bits of a BLAKE2b digest (RFC 7693), centred in their cell, so it reaches neither end.
    """
    counters = struct.pack(
        "<QQQ", seed & _INT64_MASK, choice_index & _INT64_MASK, position & _INT64_MASK
    )
    digest = hashlib.blake2b(counters, digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 12) + 0.5) * 2.0**-52


def uniform_variates(counters: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return float64[R], the `uniform_variate` of each seed, choice index and position (int64)."""
    packed = np.array(counters, "<i8").tobytes()
    starts = range(0, len(packed), 24)
    digests = [hashlib.blake2b(packed[i : i + 24], digest_size=8).digest() for i in starts]
    words: np.ndarray = np.frombuffer(b"".join(digests), "<u8") >> 12
    return (words + 0.5) * 2.0**-52
