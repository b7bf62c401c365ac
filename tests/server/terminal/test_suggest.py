import pytest

from stonechat_server.terminal.suggest import did_you_mean, nearest

KNOWN = ("serve", "usage", "chat", "MODEL")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("srve", "serve"), ("Chat", "chat"), ("model", "MODEL"), ("xyz", None), ("", None)],
)
def test_the_nearest_word(word: str, expected: str | None) -> None:
    assert nearest(word, KNOWN) == expected
    assert did_you_mean(word, KNOWN) == (f"; did you mean {expected}?" if expected else "")
