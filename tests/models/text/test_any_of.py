"""A pattern for many texts finds what a list of them finds, the longest first."""

import re

from hypothesis import given
from hypothesis import strategies as st

from stonechat_models.text.any_of import any_of

LETTERS = "ab|.<\n"


@given(st.sets(st.text(LETTERS, min_size=1, max_size=4)), st.text(LETTERS, max_size=12))
def test_the_longest_of_the_texts_is_found(texts: set[str], text: str) -> None:
    found, place = [], 0
    while place < len(text):
        here = [one for one in texts if text.startswith(one, place)]
        if here:
            found.append(max(here, key=len))
        place += len(found[-1]) if here else 1
    assert re.findall(any_of(texts), text) == found


def test_a_shared_beginning_is_there_once() -> None:
    assert any_of({"<ab>", "<ac>", "<a"}) == "<a(?:b>|c>)?"
    assert any_of(()) == "(?!)"
