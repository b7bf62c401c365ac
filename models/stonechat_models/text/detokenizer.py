"""Turns token ids into text, one token at a time. It never splits a character."""

import codecs

from stonechat_models.text.tokenizer import Tokenizer


class Detokenizer:
    """Joins the bytes of tokens into text. All of it together is what `Tokenizer.decode` returns.

    Bytes that may still become a character are held back. Invalid bytes become U+FFFD.
    """

    __slots__ = ("_at_start", "_pending", "_tokenizer", "num_chars")

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True) -> None:
        """`at_start` says whether the first token is the first of the whole text."""
        self._tokenizer = tokenizer
        self._pending = b""
        self._at_start = at_start
        self.num_chars = 0
        """Number of characters returned so far."""

    def add(self, token_id: int) -> str:
        """Return the text that `token_id` completes, which may be empty."""
        data = self._tokenizer.token_bytes(token_id)
        if self._at_start and data:
            self._at_start = False
            data = self._tokenizer.bytes_at_start(token_id)
        if not self._pending and data.isascii():
            self.num_chars += len(data)
            return data.decode("ascii")
        data = self._pending + data
        text, num_used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[num_used:]
        self.num_chars += len(text)
        return text

    def flush(self) -> str:
        """Return the text of the bytes held back: U+FFFD, or nothing."""
        text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        self.num_chars += len(text)
        return text

    def start_of(self, token_id: int) -> int:
        """Return the index of the character in which `token_id` begins if it is added next.

        That is the unfinished character if the token's first byte continues it.
        """
        if not self._pending:
            return self.num_chars
        joined = self._pending + self._tokenizer.token_bytes(token_id)[:1]
        text, _ = codecs.utf_8_decode(joined, "replace", False)
        is_cut_off = text.startswith("\ufffd") and joined != b"\xef\xbf\xbd"
        return self.num_chars + is_cut_off
