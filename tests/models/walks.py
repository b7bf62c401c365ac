"""Random walks through a grammar."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stonechat_models.sampling.state import TokenConstraint
from tests.models.byte_vocabulary import ByteVocabulary

PADDED_VOCAB = 320


def allowed_ids(constraint: TokenConstraint) -> list[int]:
    bits = np.unpackbits(_mask(constraint), bitorder="little")
    return list(bits.nonzero()[0].tolist())


def allows(constraint: TokenConstraint, token_id: int) -> bool:
    return bool(_mask(constraint)[token_id // 8] >> token_id % 8 & 1)


def _mask(constraint: TokenConstraint) -> npt.NDArray[np.uint8]:
    row = np.zeros(PADDED_VOCAB // 32, dtype=np.int32)
    assert constraint.fill_bitmask(row)
    return row.view(np.uint8)


def walk(
    constraint: TokenConstraint,
    vocabulary: ByteVocabulary,
    rng: random.Random,
    limit: int = 400,
    ends: Sequence[str] = (),
) -> bytes | None:
    """Return the bytes of random allowed tokens, or None if no end comes within `limit` tokens.

    Quotes, brackets, the end and the texts `ends` are drawn more often, and soon always, so that
    most walks end.
    """
    token_ids: list[int] = []
    closers = {vocabulary.id_of(c) for c in (b'"', b"}", b"]", b'"}')}
    closers.update(vocabulary.eos_token_ids)
    texts = [vocabulary.encode(end) for end in ends]
    while len(token_ids) < limit:
        if constraint.is_finished:
            return vocabulary.decode(token_ids)
        allowed = allowed_ids(constraint)
        assert allowed
        likely = []
        if rng.random() < 0.3 + 3 * len(token_ids) / limit:
            after = next(filter(None, (_after(constraint, text) for text in texts)), None)
            if after is not None:
                constraint, text = after
                token_ids += text
                continue
            likely = sorted(closers.intersection(allowed))
        token_id = rng.choice(likely or allowed)
        if token_id in vocabulary.eos_token_ids:
            return vocabulary.decode(token_ids)
        token_ids.append(token_id)
        constraint.accept(token_id)
    return None


def _after(
    constraint: TokenConstraint, token_ids: list[int]
) -> tuple[TokenConstraint, list[int]] | None:
    """The position after these tokens, and the tokens; None if they are not allowed."""
    fork = constraint.fork()
    for token_id in token_ids:
        if fork.is_finished or not allows(fork, token_id):
            return None
        fork.accept(token_id)
    return fork, token_ids
