"""Text to token ids and back, on the `tokenizers` library alone, so that it loads quickly."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from stonechat_models.errors import ModelLoadError
from stonechat_models.text.token_bytes import token_spelling
from stonechat_models.text.tokenizer_config import TokenizerFiles, read_tokenizer_files

LONG_TEXT = 16_384
"""Characters from which on a text is encoded without the interpreter lock."""


class Tokenizer:
    """A model's vocabulary. Safe to share among threads.

    A text is the UTF-8 reading of its tokens' bytes, each invalid part of them one U+FFFD. For
    valid UTF-8 this is what the `tokenizers` library decodes, a leading space dropped alike.
    """

    path: Path
    """The `tokenizer.json` it was read from."""
    vocab_size: int
    """Ids are below this; the model's logits may be wider."""
    special_ids: frozenset[int]
    """Control tokens, which `decode` skips when asked."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer: the tokenizer's own and those of the generation config."""
    special_tokens: Mapping[str, str]
    """bos_token, eos_token, …: their texts, for chat templates."""
    chat_templates: Mapping[str, str]
    """Jinja sources by name."""

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
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.special_tokens = MappingProxyType(files.special_tokens)
        self.chat_templates = MappingProxyType(files.chat_templates)
        eos = backend.token_to_id(files.special_tokens.get("eos_token", ""))
        self.eos_token_ids = files.eos_token_ids | ({eos} if eos is not None else set())
        self._spelling = token_spelling(backend)
        self._bytes: list[bytes | None] = [None] * self.vocab_size
        self._texts: dict[int, str] = {}
        """What `token_text` has been asked for."""

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read a model folder. Raises `ModelLoadError` without a readable `tokenizer.json`."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(f"{folder} has no tokenizer.json")
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelLoadError(f"cannot read {path}: {error}") from error
        return cls(backend, read_tokenizer_files(folder), path)

    @property
    def chat_template(self) -> str | None:
        """The usual chat template, if the model has one."""
        return self.chat_templates.get("default")

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; special tokens written out in it become their ids.

        `add_special_tokens`: with what the tokenizer puts around a text (BOS), which chat
        templates write out themselves. A megabyte takes about half a second, in which other
        threads run: call it in a thread of its own for long texts.
        """
        if len(text) < LONG_TEXT:
            encoding = self._backend.encode(text, add_special_tokens=add_special_tokens)
        else:  # `encode` holds the lock all the time, a batch of one does not
            encoding = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )[0]
        ids: list[int] = encoding.ids
        return ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`; ids outside the vocabulary are passed over."""
        pieces: list[bytes] = []
        for token_id in token_ids:
            if skip_special_tokens and token_id in self.special_ids:
                continue
            at_start = not pieces
            piece = self.bytes_at_start(token_id) if at_start else self.token_bytes(token_id)
            if piece or (at_start and self.token_bytes(token_id)):
                pieces.append(piece)
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return a token's exact bytes, which may be part of a character; b"" if there is none."""
        if not 0 <= token_id < self.vocab_size:
            return b""
        known = self._bytes[token_id]
        if known is None:
            token = self._backend.id_to_token(token_id)
            known = b"" if token is None else self._spelling.bytes_of(token)
            self._bytes[token_id] = known
        return known

    def bytes_at_start(self, token_id: int) -> bytes:
        """Return the bytes of a token that begins a text, where decoders may drop a space."""
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        return b"" if token is None else self._spelling.bytes_at_start(token)

    def token_text(self, token_id: int) -> str:
        """Return a token's own text, U+FFFD for what is not a whole character."""
        text = self._texts.get(token_id)
        if text is None:
            text = self.token_bytes(token_id).decode("utf-8", "replace")
            if 0 <= token_id < self.vocab_size:
                self._texts[token_id] = text
        return text


def _flag_special(backend: Backend, texts: frozenset[str]) -> None:
    """Make special what the configuration calls so and the vocabulary has without saying it."""
    flagged = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    missing = sorted(t for t in texts - flagged if backend.token_to_id(t) is not None)
    if missing:
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
