"""Offsets point at the character in which a token begins, whatever bytes the tokens have."""

import random

import pytest

from stonechat_server.completions_api.offsets import TextOffsets, as_shown

TEXTS = ["", "abc", "aé☃👋b", "👋👋", "e\u0301\u200d", "\ufffd\ufffd"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_begins_in_the_character_of_its_first_byte(text: str) -> None:
    data = text.encode()
    character_of = [i for i, character in enumerate(text) for _ in character.encode()]
    draw = random.Random(0)
    for _ in range(50):
        cuts = sorted(draw.sample(range(len(data) + 1), draw.randint(0, len(data))))
        offsets, start = TextOffsets(7), 0
        for end in [*cuts, len(data)]:
            expected = character_of[start] if start < len(data) else len(text)
            if end > start:
                assert offsets.add(data[start:end]) == 7 + expected
            start = end


def test_invalid_bytes_count_as_they_read() -> None:
    offsets = TextOffsets()
    pieces = [b"a", b"\xff", b"\xe2\x98", b"b", b"\xe2", b"\xff", b"c"]
    text = b"".join(pieces).decode(errors="replace")
    assert text == "a\ufffd\ufffdb\ufffd\ufffdc"
    assert [offsets.add(piece) for piece in pieces] == [0, 1, 2, 3, 4, 5, 6]


def test_tokens_without_text_stand_where_they_are() -> None:
    offsets = TextOffsets()
    assert [offsets.add(piece) for piece in (b"", b"ab", b"", b"c")] == [0, 0, 2, 2]


def test_a_space_that_is_not_shown_takes_no_room() -> None:
    assert as_shown([b" a", b" b"], "a b") == [b"a", b" b"]
    assert as_shown([b" a", b" b"], " a b") == [b" a", b" b"]
    assert as_shown([b"", b" ", b"a"], "a") == [b"", b"", b"a"]
    assert as_shown([], "") == []
