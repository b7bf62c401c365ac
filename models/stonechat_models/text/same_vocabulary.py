"""Whether two models give the same tokens the same ids."""

import re

from stonechat_models.text.tokenizer import Tokenizer

LEAST_SHARED = 0.99
"""Share of the larger vocabulary that both must have. Models of one family pad it differently."""
UNUSED = re.compile(r"<unused\d+>|\[(?:PAD|UNUSED)\d+\]")
"""Tokens that stand for nothing. In one model of a family, some may have a meaning."""


def vocabulary_difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Say where two vocabularies differ: "the token 5 is 'a' in … and 'b' in …".

    Return None if each id that both use stands for the same token, and few ids are only in one.
    """
    texts, other_texts = _texts(one), _texts(other)
    shared = texts.keys() & other_texts.keys()
    for token_id in sorted(shared):
        text, other_text = texts[token_id], other_texts[token_id]
        if text != other_text and not (UNUSED.fullmatch(text) or UNUSED.fullmatch(other_text)):
            return f"the token {token_id} is {text!r} in one and {other_text!r} in the other"
    if len(shared) < LEAST_SHARED * max(len(texts), len(other_texts)):
        return f"one has {len(texts):,} tokens and the other {len(other_texts):,}"
    return None


def _texts(tokenizer: Tokenizer) -> dict[int, str]:
    return {token_id: text for text, token_id in tokenizer.vocabulary().items()}
