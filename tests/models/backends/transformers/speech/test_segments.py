"""Words of tokens that end within characters, with and without spaces."""

import pytest

from stonechat_models.backends.transformers.speech.segments import TimedToken, words_of
from tests.models.tiny_tokenizers import byte_level_backend, wrap

TOKENIZER = wrap(byte_level_backend())


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        (" Hé, you!", "en", [("Hé,", 0, 5), ("you!", 5, 10)]),
        ("one two", "en", [("one", 0, 3), ("two", 3, 7)]),
        ("你好。", "zh", [("你", 0, 3), ("好", 3, 6), ("。", 6, 9)]),
        ("", "en", []),
    ],
)
def test_words_begin_with_spaces(
    text: str, language: str, words: list[tuple[str, int, int]]
) -> None:
    """Each byte is a token, and takes a second."""
    data = text.encode()
    by_byte = {TOKENIZER.token_bytes(i): i for i in range(256)}
    tokens = [TimedToken(by_byte[data[i : i + 1]], i, i + 1) for i in range(len(data))]
    found = words_of(tokens, TOKENIZER, language)
    assert [(word.text, word.start, word.end) for word in found] == words
