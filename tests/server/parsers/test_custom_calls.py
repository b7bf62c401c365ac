"""Calls of custom tools: the input stands verbatim between its tags."""

import pytest

from stonechat_server.parsers.custom_calls import CustomCallReader
from stonechat_server.tool_formats.layout import CallArguments, CallStart

TRIGGERS = ("<custom_tool_call", "<tool_call>")
OPENING = ' name="sql">\n'
CLOSING = "\n</custom_tool_call>"


def read(text: str) -> tuple[str | None, str | None, bool]:
    """Return the input of the call, the rest, and whether it was cut. None: no call."""
    reader = CustomCallReader(("sql",), TRIGGERS)
    events = []
    for position, char in enumerate(text):
        events += reader.push(char)
        if reader.rest is not None:
            reader.rest += text[position + 1 :]
            break
    is_cut = reader.is_cut
    events += reader.finish()
    if not events:
        return None, reader.rest, is_cut
    start, *pieces = events
    assert start == CallStart("sql", "custom")
    given = ""
    for piece in pieces:
        assert isinstance(piece, CallArguments)
        given += piece.text
    return given, reader.rest, is_cut


@pytest.mark.parametrize("given", ["SELECT 1", "", "a\n\nb\n", "<custom_tool", "</b>", "é 👋"])
def test_the_input_is_verbatim(given: str) -> None:
    assert read(OPENING + given + CLOSING) == (given, "", False)
    assert read(OPENING + given + CLOSING + "\n \n") == (given, "", False)


def test_another_call_ends_the_input() -> None:
    for trigger in TRIGGERS:
        given, rest, is_cut = read(f"{OPENING}x{CLOSING}\n{trigger} more")
        assert (given, is_cut) == ("x", False)
        assert rest is not None
        assert rest.strip() == f"{trigger} more"


@pytest.mark.parametrize("middle", [" ok", "\n<tool_cat>", "\n\n\n<custom_tool_cal", "x"])
def test_a_closing_tag_within_the_input_is_a_part_of_it(middle: str) -> None:
    given = f"a{CLOSING}{middle}b{CLOSING}{CLOSING}c"
    assert read(OPENING + given + CLOSING) == (given, "", False)


def test_an_input_that_is_cut_keeps_what_came() -> None:
    assert read(OPENING + "SELECT") == ("SELECT", "", True)
    for length in range(len(CLOSING)):
        assert read(OPENING + "SELECT" + CLOSING[:length]) == ("SELECT", "", True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " nam",
        ' name="sq',
        ' name="sql"',
        ' name="other">\n',
        ' name="sql" id="1">\n',
        ' id="1" name="sql">\n',
        "> text",
    ],
)
def test_what_is_no_call_is_left_whole(text: str) -> None:
    assert read(text) == (None, text, False)
