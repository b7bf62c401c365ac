"""Whether two models give the same tokens the same ids."""

from stonechat_models.text.tokenizer import Tokenizer

LEAST_SHARED = 0.99
"""Share of the larger vocabulary that both must have. Models of one family pad it differently."""


def vocabulary_difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Say where two vocabularies differ: "the token 5 is 'a' in … and 'b' in …".

    Return None if each id that both have stands for the same token, and few ids are only in one.
    """
    texts, other_texts = _texts(one), _texts(other)
    shared = texts.keys() & other_texts.keys()
    for token_id in sorted(shared):
        if texts[token_id] != other_texts[token_id]:
            return (
                f"the token {token_id} is {texts[token_id]!r} in one "
                f"and {other_texts[token_id]!r} in the other"
            )
    if len(shared) < LEAST_SHARED * max(len(texts), len(other_texts)):
        return f"one has {len(texts):,} tokens and the other {len(other_texts):,}"
    return None


def _texts(tokenizer: Tokenizer) -> dict[int, str]:
    return {token_id: text for text, token_id in tokenizer.vocabulary().items()}
