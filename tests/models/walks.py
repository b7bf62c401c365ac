"""Random walks through a grammar."""

import random

import numpy as np

from stonechat_models.sampling.state import TokenConstraint
from tests.models.byte_vocabulary import ByteVocabulary

PADDED_VOCAB = 320


def allowed_ids(constraint: TokenConstraint) -> list[int]:
    row = np.zeros(PADDED_VOCAB // 32, dtype=np.int32)
    assert constraint.fill_bitmask(row)
    bits = np.unpackbits(row.view(np.uint8), bitorder="little")
    return list(np.flatnonzero(bits).tolist())


def walk(
    constraint: TokenConstraint, vocabulary: ByteVocabulary, rng: random.Random, limit: int = 400
) -> bytes | None:
    """Return the bytes of random allowed tokens, or None if no end comes within `limit` tokens.

    Quotes and brackets are drawn more often, so that most walks end.
    """
    token_ids: list[int] = []
    closers = [vocabulary.id_of(c) for c in (b'"', b"}", b"]", b'"}')]
    for _ in range(limit):
        if constraint.is_finished:
            return vocabulary.decode(token_ids)
        allowed = allowed_ids(constraint)
        assert allowed
        likely = [i for i in closers if i in allowed]
        token_id = rng.choice(likely if likely and rng.random() < 0.3 else allowed)
        if token_id in vocabulary.eos_token_ids:
            return vocabulary.decode(token_ids)
        token_ids.append(token_id)
        constraint.accept(token_id)
    return None
