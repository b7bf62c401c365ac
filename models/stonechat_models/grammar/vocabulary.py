"""The vocabulary as llguidance needs it, built from a `Tokenizer` and the width of the logits."""

from collections.abc import Collection, Sequence
from typing import Protocol

from llguidance import LLTokenizer

from stonechat_models.errors import GrammarError


class VocabularyLike(Protocol):
    """The part of a `Tokenizer` that grammars need."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def special_ids(self) -> Collection[int]: ...

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]: ...


class _Wrapper:
    """The interface that `LLTokenizer` expects. Only tokens marked special count as special."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: VocabularyLike, eos_token_id: int, num_tokens: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.special_token_ids = sorted(i for i in tokenizer.special_ids if i < num_tokens)
        # Ids that only pad the logits have no text, and a token without text is never allowed.
        texts = [tokenizer.token_bytes(i) for i in range(min(num_tokens, tokenizer.vocab_size))]
        self.tokens: Sequence[bytes] = [*texts, *[b""] * (num_tokens - len(texts))]

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        return self._tokenizer.encode(text, add_special_tokens=False)


def build_llguidance_tokenizer(tokenizer: VocabularyLike, vocab_size: int) -> LLTokenizer:
    """Return a tokenizer with exactly `vocab_size` entries (the logits' width), in about 0.1 s.

    Raises `GrammarError` if the vocabulary has no end token.
    """
    eos_ids = sorted(i for i in tokenizer.eos_token_ids if i < vocab_size)
    if not eos_ids:
        raise GrammarError("the tokenizer has no end-of-sequence token, which grammars need")
    wrapper = _Wrapper(tokenizer, eos_ids[0], vocab_size)
    return LLTokenizer(wrapper, n_vocab=vocab_size, eos_token=eos_ids)
