"""What a filter releases, piece by piece. `test_output_processor` has the rules in full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.text.stop_filter import StopFilter
from stonechat_models.text.stop_strings import StopStrings
from stonechat_models.types import StopRules, StopScope

TEXT = st.text(alphabet="ab<", max_size=14)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=3), min_size=1, max_size=3)


def new_filter(*strings: str, shows_stop: bool = False, **rules: object) -> StopFilter:
    stop_rules = StopRules(strings=strings, **rules)  # type: ignore[arg-type]
    return StopFilter(StopStrings(strings), stop_rules, shows_stop=shows_stop)


def expected(text: str, stops: list[str], shows_stop: bool) -> tuple[str, str | None]:
    """Return the text that is shown and the stop string that ends it, by definition."""
    for end in range(1, len(text) + 1):
        if matches := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(matches, key=len)
            return text[: end if shows_stop else end - len(stop)], stop
    return text, None


@given(TEXT, STOPS, st.booleans(), st.integers(1, 4))
def test_the_pieces_released_are_the_text_up_to_the_stop_string(
    text: str, stops: list[str], shows_stop: bool, size: int
) -> None:
    stop_filter = new_filter(*stops, shows_stop=shows_stop)
    released = ""
    for start in range(0, len(text) + 1, size):
        is_last = start + size > len(text)
        released += stop_filter.add(text[start : start + size], is_last=is_last)
        if stop_filter.stop is not None:
            break
    assert (released, stop_filter.stop) == expected(text, stops, shows_stop)


def test_only_text_that_may_become_a_stop_string_is_held() -> None:
    stop_filter = new_filter("abc")
    released = [stop_filter.add(piece) for piece in ("xa", "b", "ab", "d")]
    assert released == ["x", "", "ab", "abd"]


def test_text_that_may_not_stop_yet_can_still_begin_a_stop_string() -> None:
    stop_filter = new_filter("ab")
    assert stop_filter.add("aba", may_stop=False) == "ab"
    assert stop_filter.add("b") == ""
    assert stop_filter.stop == "ab"


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        ({"never_after": ("<call>",)}, "a <call>b"),
        ({"never_first": "{"}, ' {"b'),
        ({"scope": StopScope((">",))}, "ab"),
        ({"scope": StopScope((">",), until=("<",))}, ">a<b"),
    ],
)
def test_a_stop_string_outside_its_scope_does_not_count(
    rules: dict[str, object], text: str
) -> None:
    stop_filter = new_filter("b", **rules)
    assert "".join(map(stop_filter.add, text)) + stop_filter.add("", is_last=True) == text
    assert stop_filter.stop is None
