"""The uniform variate of a draw: a hash of counters, so there is no generator state."""

import hashlib
import struct

_MASK = (1 << 64) - 1


def uniform_variate(seed: int, choice_index: int, position: int) -> float:
    """Return u with 0 < u < 1, the same for the same three integers on every machine.

    u is 52 bits of a BLAKE2b digest (RFC 7693), centred in their cell, so it reaches neither end.
    """
    counters = struct.pack("<QQQ", seed & _MASK, choice_index & _MASK, position & _MASK)
    digest = hashlib.blake2b(counters, digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 12) + 0.5) * 2.0**-52
