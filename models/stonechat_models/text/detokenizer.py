"""Token ids to text, one token at a time, never splitting a character."""

import codecs

from stonechat_models.text.tokenizer import Tokenizer


class Detokenizer:
    """Joins tokens' bytes into text; all of it together is what `Tokenizer.decode` returns.

    Bytes that may still become a character wait; what cannot becomes U+FFFD.
    """

    __slots__ = ("_at_start", "_tokenizer", "_waiting", "num_chars")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting = b""
        self._at_start = True
        self.num_chars = 0
        """Characters returned so far."""

    def add(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        data = self._piece(token_id)
        if not self._waiting and data.isascii():
            self.num_chars += len(data)
            return data.decode("ascii")
        data = self._waiting + data
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._waiting = data[used:]
        self.num_chars += len(text)
        return text

    def flush(self) -> str:
        """Return what the bytes still waiting come to: U+FFFD, or nothing."""
        text = self._waiting.decode("utf-8", "replace")
        self._waiting = b""
        self.num_chars += len(text)
        return text

    def start_of(self, token_id: int) -> int:
        """Return the index of the character in which `token_id`, if added next, begins.

        That is the character under way when the token's first byte carries it on.
        """
        if not self._waiting:
            return self.num_chars
        joined = self._waiting + self._tokenizer.token_bytes(token_id)[:1]
        text, _ = codecs.utf_8_decode(joined, "replace", False)
        is_cut_off = text.startswith("\ufffd") and joined != b"\xef\xbf\xbd"
        return self.num_chars + is_cut_off

    def _piece(self, token_id: int) -> bytes:
        piece = self._tokenizer.token_bytes(token_id)
        if self._at_start and piece:
            self._at_start = False
            return self._tokenizer.bytes_at_start(token_id)
        return piece
