import time

from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.stop_strings import StopStrings

LETTERS = st.text(alphabet="ab", max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=5)


def first_end(stops: list[str], text: str) -> tuple[int, str]:
    """The definition, tried at every end."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return end, max(matches, key=len)
    return -1, ""


def longest_prefix_at_end(stops: list[str], text: str) -> int:
    lengths = (n for stop in stops for n in range(len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)


@given(STOPS, LETTERS, LETTERS)
def test_the_first_end_after_what_was_seen(stops: list[str], seen: str, more: str) -> None:
    expected = (-1, "")
    for end in range(len(seen) + 1, len(seen + more) + 1):
        if found := [stop for stop in stops if (seen + more)[:end].endswith(stop)]:
            expected = end, max(found, key=len)
            break
    assert StopStrings(stops).find(seen + more, len(seen)) == expected


@given(STOPS, LETTERS)
def test_holds_the_longest_beginning_of_a_stop_string(stops: list[str], text: str) -> None:
    assert StopStrings(stops).num_held(text) == longest_prefix_at_end(stops, text)


@given(STOPS, LETTERS, st.lists(st.integers(1, 4), max_size=12))
def test_cuts_do_not_matter(stops: list[str], text: str, sizes: list[int]) -> None:
    """Following the text piece by piece, keeping only what is held, finds the same place."""
    strings, held, at = StopStrings(stops), "", 0
    for size in [*sizes, len(text) + 1]:
        piece = text[at : at + size]
        end, stop = strings.find(held + piece, len(held))
        if end >= 0:
            assert (at - len(held) + end, stop) == first_end(stops, text)
            return
        at += len(piece)
        held = (held + piece)[len(held + piece) - strings.num_held(held + piece) :]
    assert first_end(stops, text) == (-1, "")


def test_many_long_strings_cost_little() -> None:
    stops = ["x" * 100_000 + chr(0x4E00 + i) for i in range(64)]
    started = time.perf_counter()
    strings = StopStrings(stops)
    text = "x" * 5000
    assert strings.find(text, 0) == (-1, "")
    assert strings.num_held(text) == 5000
    assert strings.num_held(text + "y") == 0
    assert time.perf_counter() - started < 1.0
    assert strings.find("x" * 100_001 + "一", 5000) == (100_002, stops[0])
