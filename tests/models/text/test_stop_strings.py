from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.text.stop_strings import StopStrings

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=5)


def first_end(stops: list[str], text: str) -> tuple[int, str]:
    """Return the result by definition: try every end."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return end, max(matches, key=len)
    return -1, ""


def longest_prefix_at_end(stops: list[str], text: str) -> int:
    lengths = (n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)


@given(STOPS, LETTERS, LETTERS)
def test_the_first_end_after_skipped_text(
    stops: list[str], skipped_text: str, next_text: str
) -> None:
    expected = (-1, "")
    for end in range(len(skipped_text) + 1, len(skipped_text + next_text) + 1):
        if matches := [stop for stop in stops if (skipped_text + next_text)[:end].endswith(stop)]:
            expected = end - len(skipped_text), max(matches, key=len)
            break
    match = StopStrings(stops).new_match()
    match.skip(skipped_text)
    assert match.find(next_text) == expected


@given(STOPS, LETTERS)
def test_holds_the_longest_beginning_of_a_stop_string(stops: list[str], text: str) -> None:
    match = StopStrings(stops).new_match()
    match.skip(text)
    assert match.num_held == longest_prefix_at_end(stops, text)


@given(STOPS, LETTERS, st.lists(st.integers(1, 4), max_size=12))
def test_cuts_do_not_matter(stops: list[str], text: str, sizes: list[int]) -> None:
    match, at = StopStrings(stops).new_match(), 0
    for size in [*sizes, len(text) + 1]:
        piece = text[at : at + size]
        end, stop = match.find(piece)
        if end >= 0:
            assert (at + end, stop) == first_end(stops, text)
            return
        at += len(piece)
        assert match.num_held == longest_prefix_at_end(stops, text[:at])
    assert first_end(stops, text) == (-1, "")


def test_texts_share_nothing() -> None:
    stops = StopStrings(["abc"])
    first, second = stops.new_match(), stops.new_match()
    assert first.find("xab") == (-1, "")
    assert second.find("c") == (-1, "")
    assert first.find("c") == (1, "abc")


class CountedReads(str):
    """A string that counts how often a character of it is read."""

    num_reads = 0

    def __getitem__(self, key: Any) -> str:
        self.num_reads += 1
        return super().__getitem__(key)


def test_many_long_strings_cost_little() -> None:
    """Only as many characters of each string are read as the text has, and not many times."""
    stops = [CountedReads("x" * 100_000 + chr(0x4E00 + i)) for i in range(64)]
    match = StopStrings(stops).new_match()
    assert match.find("x" * 5000) == (-1, "")
    assert match.num_held == 5000
    match.skip("y")
    assert match.num_held == 0
    assert all(5000 <= stop.num_reads < 6 * 5000 for stop in stops)


def test_a_text_is_not_scanned_repeatedly() -> None:
    """Each stop string nearly matches everywhere in the text, which arrives in small pieces."""
    stops = [*("ab" + "a" * (9000 + i) for i in range(20)), "a" * 9000 + "c"]
    counted_stops = [CountedReads(stop) for stop in stops]
    match = StopStrings(counted_stops).new_match()
    for _ in range(1000):
        assert match.find("aaaaaaaa") == (-1, "")
    assert match.num_held == 8000
    assert all(8000 <= stop.num_reads < 6 * 8000 for stop in counted_stops)
