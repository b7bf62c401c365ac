"""Turns text into token ids and back, at once or token by token.

It needs only the `tokenizers` library, to load quickly.
"""

import codecs
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import MappingProxyType

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from stonechat_models.character_map import check_normalizer
from stonechat_models.errors import ModelLoadError
from stonechat_models.model_file import reading
from stonechat_models.text.pair_frame import PairFrame
from stonechat_models.text.plain_text import PlainTextEncoder
from stonechat_models.text.token_bytes import token_spelling
from stonechat_models.text.tokenizer_config import TokenizerFiles, read_tokenizer_files

MAX_VOCABULARY = 1 << 22
PROBE_TEXT = "A b\n1 é"
"""A tokenizer that cannot encode and decode this text is refused at load."""
USUAL_CLASS = "PreTrainedTokenizerFast"
"""The class of transformers for a `tokenizer.json` whose folder names no other."""
PLAIN_TEXT_ENCODERS = 4
"""Each holds a copy of the vocabulary. One serves all requests with the same chat template."""
LONG_TEXT = 512
"""A text of at least this many characters is encoded without the interpreter lock, and without the
offsets of its tokens. That takes a sixth less time, but starts the library's threads."""


class Tokenizer:
    """A model's vocabulary. Threads can share it.

    The text of tokens is their bytes decoded as UTF-8. Each invalid part becomes one U+FFFD. For
    valid UTF-8 the text equals that of the `tokenizers` library, a dropped leading space included.
    """

    path: Path
    """The `tokenizer.json` that the vocabulary comes from."""
    vocab_size: int
    """All ids are below this. The model's logits may be wider."""
    special_ids: frozenset[int]
    """Control tokens, which `decode` skips by default."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer: that of the tokenizer, and those of the generation config."""
    special_tokens: Mapping[str, str]
    """The texts of bos_token, eos_token, …, for chat templates."""
    chat_templates: Mapping[str, str]
    """Jinja sources by name."""
    added_tokens: frozenset[str]
    """The texts that become one token wherever they stand; the special tokens are among them."""
    added_token_ids: frozenset[int]
    """The ids of `added_tokens`."""
    tokenizer_class: str
    """The class of transformers that the files are for."""

    def __init__(self, backend: Backend, files: TokenizerFiles, path: Path) -> None:
        self.path = path
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        _flag_special(backend, files.special_texts)
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max(
            [backend.get_vocab_size(with_added_tokens=True), *(i + 1 for i in added)]
        )
        if self.vocab_size > MAX_VOCABULARY:
            raise ValueError(f"a vocabulary of {self.vocab_size} tokens is too large")
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.added_tokens = frozenset(token.content for token in added.values())
        self.added_token_ids = frozenset(added)
        self.special_tokens = MappingProxyType(files.special_tokens)
        self.chat_templates = MappingProxyType(files.chat_templates)
        self.tokenizer_class = files.tokenizer_class or USUAL_CLASS
        eos = backend.token_to_id(files.special_tokens.get("eos_token", ""))
        self.eos_token_ids = files.eos_token_ids | ({eos} if eos is not None else set())
        self._spelling = token_spelling(backend)
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._start_bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}
        """What `token_bytes`, `bytes_at_start` and `token_text` have returned, by id."""
        self._plain_text_encoder = lru_cache(PLAIN_TEXT_ENCODERS)(
            partial(PlainTextEncoder, backend)
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read a model folder. Raises `ModelLoadError` if it has no readable `tokenizer.json`."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{folder} has no tokenizer.json; name a folder that has one")
        files = read_tokenizer_files(folder)
        with reading(path):
            backend = Backend.from_file(str(path))
            check_normalizer(backend)
            tokenizer = cls(backend, files, path)
            for adds_special_tokens in (False, True):
                tokenizer.decode(tokenizer.encode(PROBE_TEXT, adds_special_tokens))
        return tokenizer

    def refuse_missing_rows(self, num_rows: int) -> None:
        """Raise `ModelLoadError` if ordinary text has tokens beyond the model's embedding rows.

        Added tokens beyond them do no harm until a text spells one.
        """
        if self.vocab_size <= num_rows:
            return
        beyond = [
            (token_id, token)
            for token, token_id in self.vocabulary().items()
            if token_id >= num_rows and token not in self.added_tokens
        ]
        if beyond:
            token_id, token = min(beyond)
            raise ModelLoadError(
                f"{self.path} has {len(beyond)} tokens for which the model has no embedding, such "
                f"as {token!r} with the id {token_id} of {num_rows}: it belongs to another model"
            )

    def vocabulary(self) -> dict[str, int]:
        """Return the ids of all tokens by their spelling, added tokens included."""
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def chat_template(self) -> str | None:
        """The default chat template, or None if the model has none."""
        return self.chat_templates.get("default")

    @cached_property
    def pair_frame(self) -> PairFrame:
        """What stands around the two texts of a pair, such as a question and a document.

        Raises `UnsupportedModelError` if the tokenizer does not keep them in their order.
        """
        return PairFrame.of(self._backend)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`. The text of a special token becomes the token's id.

        `add_special_tokens` adds what the tokenizer puts around a text (BOS). Chat templates write
        that themselves. A megabyte takes about half a second. Other threads run meanwhile, so call
        this in a thread of its own for long texts.
        """
        if len(text) < LONG_TEXT:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:  # `encode` holds the lock throughout and finds offsets; this does neither
            encoding = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )[0]
        ids: list[int] = encoding.ids
        return ids

    def encode_parts(
        self, parts: Sequence[tuple[str, bool]], other_tokens: frozenset[str] = frozenset()
    ) -> list[int]:
        """Return the ids of the joined parts.

        In a part whose flag is set, special tokens and `other_tokens` are ordinary text.
        """
        return self._plain_text_encoder(other_tokens).encode(parts)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`. Ids outside the vocabulary are skipped."""
        pieces: list[bytes] = []
        for token_id in token_ids:
            if skip_special_tokens and token_id in self.special_ids:
                continue
            at_start = not pieces
            piece = self.bytes_at_start(token_id) if at_start else self.token_bytes(token_id)
            if piece or (at_start and self.token_bytes(token_id)):
                pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def text_pieces(self, token_ids: Iterable[int]) -> list[str]:
        """Return what each token adds to the text. Joined, that is what `decode` returns, with the
        text of special tokens between.

        A character that several tokens make up is in the last of them, the others are empty.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        at_start, last = True, 0
        for token_id in token_ids:
            if token_id in self.special_ids:
                pieces.append(self.token_text(token_id))
                continue
            data = self.token_bytes(token_id)
            if at_start and data:
                data, at_start = self.bytes_at_start(token_id), False
            last = len(pieces)
            pieces.append(decoder.decode(data))
        if pieces:
            pieces[last] += decoder.decode(b"", True)
        return pieces

    def token_bytes(self, token_id: int) -> bytes:
        """Return a token's exact bytes, perhaps a part of a character; b"" for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        data = self._bytes[token_id]
        if data is None:
            token = self._backend.id_to_token(token_id)
            data = b"" if token is None else self._spelling.bytes_of(token)
            self._bytes[token_id] = data
        return data

    def bytes_at_start(self, token_id: int) -> bytes:
        """Return a token's bytes at the start of a text, where decoders may drop a space."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        data = self._start_bytes.get(token_id)
        if data is None:
            token = self._backend.id_to_token(token_id)
            data = b"" if token is None else self._spelling.bytes_at_start(token)
            self._start_bytes[token_id] = data
        return data

    def token_string(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it, such as `Ġthe`; "" for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            return ""
        return self._backend.id_to_token(token_id) or ""

    def token_text(self, token_id: int) -> str:
        """Return a token's own text. An incomplete character becomes U+FFFD."""
        text = self._texts.get(token_id)
        if text is None:
            text = self.token_bytes(token_id).decode("utf-8", "replace")
            if 0 <= token_id < self.vocab_size:
                self._texts[token_id] = text
        return text


class Detokenizer:
    """Joins the bytes of tokens into text, one token at a time. It never splits a character.

    All of it together is what `Tokenizer.decode` returns. Bytes that may still become a character
    are held back. Invalid bytes become U+FFFD.
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


def _flag_special(backend: Backend, texts: frozenset[str]) -> None:
    """Mark as special the tokens of `texts` that the vocabulary has but does not mark itself."""
    flagged = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    missing = sorted(t for t in texts - flagged if backend.token_to_id(t) is not None)
    if missing:
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
