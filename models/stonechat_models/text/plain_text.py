"""Encodes texts in which the spelling of a control token is ordinary text."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from threading import Lock

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from stonechat_models.text.any_of import any_of

BEFORE = "\U000ffffd\U000ffffc"
"""Stands before a section, so that the section is encoded as it would be after a control token."""


class PlainTextEncoder:
    """Encodes prompts of which some parts may hold no control tokens.

    Control tokens are the special tokens and `others`. A section reaches from one to the next. A
    section with a plain part is encoded without control tokens, all others as usual. So a prompt
    whose plain parts spell no control token has the usual ids. For the others the tokenizer is
    copied, once, which takes up to a second. Threads can share it.
    """

    def __init__(self, backend: Backend, others: Iterable[str] = ()) -> None:
        others = set(others)
        self._tokens = {
            token.content: token
            for token in backend.get_added_tokens_decoder().values()
            if token.special or token.content in others
        }
        self._ids = {backend.token_to_id(text) for text in self._tokens}
        self._pattern = re.compile(f"({any_of(self._tokens)})")
        self._backend = backend
        self._lock = Lock()

    @cached_property
    def _plain(self) -> Backend:
        """The tokenizer without control tokens."""
        plain = Backend.from_str(self._backend.to_str())
        plain.no_truncation()
        plain.no_padding()
        plain.add_special_tokens(
            [AddedToken(text, special=True, normalized=False) for text in self._tokens]
        )
        plain.add_tokens([AddedToken(BEFORE, special=False, normalized=False)])
        plain.encode_special_tokens = True
        return plain

    def encode(self, parts: Sequence[tuple[str, bool]]) -> list[int]:
        """Return the ids of the parts, joined. The flag says that a part is plain text."""
        together = self._encode_together(parts)
        if together is not None:
            return together
        with self._lock:  # one thread makes the copy
            before_id = self._plain.token_to_id(BEFORE)
        sections = self._sections(parts)
        ids: list[int] = []
        usual = ""
        for position, (text, is_plain) in enumerate(sections):
            if not is_plain:
                usual += text
                continue
            if usual:
                ids += _encode(self._backend, usual)
                usual = ""
            before = self._tokens[sections[position - 1][0]] if position else None
            after = (
                self._tokens[sections[position + 1][0]] if position + 1 < len(sections) else None
            )
            text = text.lstrip() if before is not None and before.rstrip else text
            text = text.rstrip() if after is not None and after.lstrip else text
            ids += self._encode_plain(text, before_id, is_first=before is None)
        return ids + _encode(self._backend, usual) if usual else ids

    def _encode_together(self, parts: Sequence[tuple[str, bool]]) -> list[int] | None:
        """Return the usual ids of the joined parts; None if a plain part may add a control token.

        The joined text must spell the same control tokens, at the same places, as the parts that
        may do so, and the ids must have the same control tokens too: a tokenizer may recognise
        other spellings.
        """
        joined = "".join(text for text, _ in parts)
        expected: list[tuple[int, str]] = []
        start = 0
        for text, is_plain in parts:
            if not is_plain:
                expected += [(start + m.start(), m[0]) for m in self._pattern.finditer(text)]
            start += len(text)
        found = [(match.start(), match[0]) for match in self._pattern.finditer(joined)]
        if BEFORE in joined or found != expected:
            return None
        ids = _encode(self._backend, joined)
        control_ids = [token_id for token_id in ids if token_id in self._ids]
        is_usual = control_ids == [self._backend.token_to_id(text) for _, text in expected]
        return ids if is_usual else None

    def _sections(self, parts: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
        """Split the parts into control tokens and what is between them."""
        sections: list[tuple[list[str], bool]] = []
        is_open = False
        for text, is_plain in parts:
            pieces = [text] if is_plain else self._pattern.split(text)
            for number, piece in enumerate(pieces):
                is_token = number % 2 == 1
                if is_open and not is_token:
                    texts, was_plain = sections[-1]
                    texts.append(piece)
                    sections[-1] = texts, was_plain or is_plain
                elif piece or is_plain:
                    sections.append(([piece], is_plain))
                    is_open = not is_token
        return [("".join(texts), is_plain) for texts, is_plain in sections]

    def _encode_plain(self, text: str, before_id: int | None, *, is_first: bool) -> list[int]:
        start = "" if is_first else BEFORE
        ids = _encode(self._plain, start + text)
        if not self._ids.isdisjoint(ids):  # the vocabulary itself has such a token
            ids = _encode(self._plain, start + self._pattern.sub(_broken, text))
        return [token_id for token_id in ids if token_id != before_id]


def _broken(match: re.Match[str]) -> str:
    return match[0][:1] + BEFORE + match[0][1:]


def _encode(backend: Backend, text: str) -> list[int]:
    ids: list[int] = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
