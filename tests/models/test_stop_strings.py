from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.stop_strings import StopAutomaton

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


@given(STOPS, LETTERS, st.integers(0, 12))
def test_finds_what_the_definition_says_wherever_the_text_is_cut(
    stops: list[str], text: str, cut: int
) -> None:
    automaton = StopAutomaton(stops)
    state, end, stop = automaton.find(0, text[:cut])
    if end < 0:
        state, end, stop = automaton.find(state, text[cut:])
        end = end if end < 0 else end + len(text[:cut])
    assert (end, stop) == first_end(stops, text)
    if end < 0:
        assert automaton.held[state] == longest_prefix_at_end(stops, text)


@given(STOPS, LETTERS)
def test_skipping_keeps_the_state(stops: list[str], text: str) -> None:
    automaton = StopAutomaton(stops)
    state = automaton.skip(0, text)
    assert automaton.held[state] == longest_prefix_at_end(stops, text)
    _, end, stop = automaton.find(state, "ab")
    expected = [
        (n, max(found, key=len))
        for n in (1, 2)
        if (found := [s for s in stops if (text + "ab"[:n]).endswith(s)])
    ]
    assert (end, stop) == (expected[0] if expected else (-1, ""))


def test_one_of_many_long_strings() -> None:
    stops = ["x" * 1000 + chr(0x4E00 + i) for i in range(64)]
    automaton = StopAutomaton(stops)
    state, end, _ = automaton.find(0, "x" * 5000)
    assert (end, automaton.held[state]) == (-1, 1000)
    assert automaton.find(state, "一")[1:] == (1, stops[0])
