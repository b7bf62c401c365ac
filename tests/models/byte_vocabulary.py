"""A small vocabulary of single bytes, longer pieces and special tokens. It needs no files."""

import re
from collections.abc import Collection, Iterable

PIECES = (
    b'{"',
    b'":',
    b'": "',
    b'", "',
    b'"}',
    b"  ",
    b"\n\n",
    b"</think>",
    b"<think>",
    b"</",
    b">{",
)
LONGEST = re.compile(
    b"|".join(map(re.escape, sorted(PIECES, key=len, reverse=True))) + b"|.", re.DOTALL
)
SPECIALS = (b"<|eos|>", b"<|bos|>", b"<|tool|>")


class ByteVocabulary:
    """Ids 0-255 are bytes. Then come `PIECES`, `SPECIALS` and further special tokens."""

    def __init__(self, specials: Iterable[str] = ()) -> None:
        self._specials = [*SPECIALS, *(text.encode() for text in specials)]
        self._tokens = [bytes([i]) for i in range(256)] + [*PIECES, *self._specials]
        self._ids = {token: i for i, token in enumerate(self._tokens)}

    @property
    def vocab_size(self) -> int:
        return len(self._tokens)

    @property
    def special_ids(self) -> Collection[int]:
        return frozenset(self._ids[token] for token in self._specials)

    @property
    def eos_token_ids(self) -> Collection[int]:
        return frozenset({self._ids[SPECIALS[0]]})

    def token_bytes(self, token_id: int) -> bytes:
        return self._tokens[token_id]

    def id_of(self, token: bytes) -> int:
        return self._ids[token]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Encode greedily, with the longest piece first. Special tokens count as text here."""
        return [self._ids[piece] for piece in LONGEST.findall(text.encode())]

    def decode(self, token_ids: Iterable[int]) -> bytes:
        return b"".join(self._tokens[i] for i in token_ids)
