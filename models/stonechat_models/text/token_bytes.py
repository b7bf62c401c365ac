"""Finds the exact bytes of a vocabulary's tokens, as its decoder spells them.

There are three families. Byte-level BPE uses GPT-2's printable alphabet for the 256 bytes.
SentencePiece with byte fallback has `<0xNN>` tokens. For every other decoder that works token by
token (metaspace, WordPiece, word-end suffixes), a token is decoded between two others.
"""

import json
import re
from collections.abc import Callable
from typing import Protocol

from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"


class TokenSpelling(Protocol):
    """Turns a token, as the vocabulary writes it, into bytes."""

    def bytes_of(self, token: str) -> bytes:
        """Return the bytes of a token in the middle of a text."""

    def bytes_at_start(self, token: str) -> bytes:
        """Return the bytes of a token at the start of a text, where some decoders drop a space."""


def token_spelling(backend: Backend) -> TokenSpelling:
    """Return the spelling of `backend`'s tokens."""
    kinds = _decoder_kinds(backend)
    if "ByteLevel" in kinds:
        added = backend.get_added_tokens_decoder().values()
        return ByteLevelSpelling(frozenset(token.content for token in added))
    decode = " ".join if backend.decoder is None else backend.decoder.decode
    return DecoderSpelling(decode, has_byte_tokens="ByteFallback" in kinds)


class ByteLevelSpelling:
    """Each character of a token is one byte. Added tokens are plain text."""

    def __init__(self, added_tokens: frozenset[str]) -> None:
        self._added_tokens = added_tokens
        self._to_latin1 = {ord(char): byte for byte, char in enumerate(_byte_alphabet())}
        self._alphabet = frozenset(self._to_latin1)

    def bytes_of(self, token: str) -> bytes:
        if token in self._added_tokens or not self._alphabet.issuperset(map(ord, token)):
            return token.encode("utf-8")
        return token.translate(self._to_latin1).encode("latin-1")

    bytes_at_start = bytes_of


class DecoderSpelling:
    """Decodes a token beside other tokens, and takes its text from the result."""

    def __init__(self, decode: Callable[[list[str]], str], *, has_byte_tokens: bool) -> None:
        self._decode = decode
        self._has_byte_tokens = has_byte_tokens
        self._before = decode([_ANCHOR])
        self._after = decode([_ANCHOR, _ANCHOR])[len(self._before) :]

    def bytes_of(self, token: str) -> bytes:
        byte = self._byte(token)
        if byte is not None:
            return byte
        text = self._decode([_ANCHOR, token, _ANCHOR])
        if not (text.startswith(self._before) and text.endswith(self._after)):
            return token.encode("utf-8")
        return text[len(self._before) : len(text) - len(self._after)].encode("utf-8")

    def bytes_at_start(self, token: str) -> bytes:
        byte = self._byte(token)
        if byte is not None and byte >= b"\x80":
            return byte
        text = self._decode([token, _ANCHOR])
        if not text.endswith(self._after):
            return self.bytes_of(token)
        return text[: len(text) - len(self._after)].encode("utf-8")

    def _byte(self, token: str) -> bytes | None:
        match = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        return bytes([int(match[1], 16)]) if match else None


def _byte_alphabet() -> list[str]:
    """Return GPT-2's character for each byte: itself if printable, else one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _decoder_kinds(backend: Backend) -> set[str]:
    """Return the types of the decoder's steps, or an empty set if there is no decoder."""
    if backend.decoder is None:
        return set()
    description = json.loads(backend.decoder.__getstate__())
    steps = description.get("decoders", [description])
    return {str(step["type"]) for step in steps}
