"""Checks SentencePiece's map of characters, with which a tokenizer normalises texts.

Its bytes are the size of a trie, the trie as a double array of 32-bit units (as Darts-clone writes
it), and the texts that characters become, each with a zero byte at its end. `tokenizers` follows
the offsets in it without a check: a damaged map panics at some text.
"""

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

HEADER = 4
LEAF, LABEL, VALUE = 1 << 8, 1 << 31 | 255, (1 << 31) - 1


def check_normalizer(tokenizer: Tokenizer) -> None:
    """Check the maps of a tokenizer's normalizer. Raises what `check_character_map` raises."""
    if tokenizer.normalizer is not None:
        for text in _maps(json.loads(tokenizer.normalizer.__getstate__())):
            check_character_map(base64.b64decode(text))


def _maps(normalizer: dict[str, Any]) -> Iterator[str]:
    if normalizer.get("type") == "Precompiled":
        yield normalizer["precompiled_charsmap"]
    for part in normalizer.get("normalizers", ()):
        yield from _maps(part)


def check_character_map(data: bytes) -> None:
    """Raise `ValueError` if a text may lead out of the trie or of the texts behind it."""
    size = int.from_bytes(data[:HEADER], "little")
    if size < 4 or size % 4 or HEADER + size > len(data):
        raise ValueError("the size of its map of characters is wrong")
    units = np.frombuffer(data, "<u4", size // 4, HEADER).astype(np.int64)
    texts = data[HEADER + size :]
    starts = np.array([byte & 0xC0 != 0x80 for byte in texts] + [True])
    offsets = (units >> 10) << ((units & 1 << 9) >> 6)
    letters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    nodes = np.zeros(1, np.int64)
    while nodes.size:
        seen[nodes] = True
        bases = nodes ^ offsets[nodes]
        children = bases[:, None] ^ letters
        if max(bases.max(), children.max()) >= len(units):
            raise ValueError("its map of characters leads nowhere")
        ends = units[bases[units[nodes] & LEAF != 0]] & VALUE
        if not (ends <= len(texts)).all() or not starts[ends].all():
            raise ValueError("its map of characters leads to no text")
        children = children[units[children] & LABEL == letters]
        nodes = np.unique(children[~seen[children]])
