"""The values that were used last are kept, as many as fit."""

from dataclasses import dataclass

from stonechat_models.media.recently_used import RecentlyUsed


@dataclass
class Value:
    num_bytes: int


def test_the_value_used_longest_ago_goes_first() -> None:
    kept: RecentlyUsed[Value] = RecentlyUsed(10)
    for name, size in ((b"a", 4), (b"b", 3), (b"c", 3)):
        kept.keep(name, Value(size))
    assert kept.find(b"a") == Value(4)
    kept.keep(b"d", Value(5))  # takes the places of b and c
    assert [name in kept for name in (b"a", b"b", b"c", b"d")] == [True, False, False, True]
    assert kept.num_bytes == 9


def test_a_value_that_is_kept_again_counts_once() -> None:
    kept: RecentlyUsed[Value] = RecentlyUsed(10)
    for size in (4, 6):
        kept.keep(b"a", Value(size))
    assert (kept.find(b"a"), kept.num_bytes) == (Value(6), 6)


def test_a_value_that_does_not_fit_drops_no_other() -> None:
    kept: RecentlyUsed[Value] = RecentlyUsed(10)
    kept.keep(b"a", Value(10))
    kept.keep(b"b", Value(11))
    assert (b"a" in kept, b"b" in kept, kept.find(b"b")) == (True, False, None)
