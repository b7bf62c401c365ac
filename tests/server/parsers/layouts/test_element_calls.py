"""Nested elements are read as the values that the schema describes."""

import json
from typing import Any

import pytest

from stonechat_server.parsers.layouts import element_calls
from stonechat_server.parsers.layouts.element_calls import ElementCallsReader, read_elements
from stonechat_server.tool_formats.invoke import MINIMAX_M3
from stonechat_server.tool_formats.layout import CallArguments, CallStart, ElementLayout

M = "]<]minimax[>["
ENTRY = {"type": "object", "properties": {"id": {"type": "integer"}, "label": {"type": "string"}}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "$defs": {"entry": ENTRY},
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "on": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "entries": {"type": "array", "items": {"$ref": "#/$defs/entry"}},
        "place": {"type": "object"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "object"}]},
        "owner": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "boxed": {"type": "object", "properties": {"item": {"type": "integer"}}},
    },
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<city>To <b> kyo#</city>", {"city": "To <b> kyo"}),
        ("<days>-14#</days>#<on>true#</on>", {"days": -14, "on": True}),
        ("<tags>#<item>a#</item>#<item>1#</item>#</tags>", {"tags": ["a", "1"]}),
        (
            "<entries>#<item>#<id>1#</id>#<label>one#</label>#</item>#</entries>",
            {"entries": [{"id": 1, "label": "one"}]},
        ),
        ("<tags>#</tags>#<place>#</place>", {"tags": [], "place": {}}),
        ("<place>#<place>#<x>1#</x>#</place>#</place>", {"place": {"place": {"x": 1}}}),
        ("<limit>5#</limit>", {"limit": 5}),
        ("<limit>#<max>10#</max>#</limit>", {"limit": {"max": 10}}),
        ("<owner>null#</owner>", {"owner": None}),
        ("<owner>me#</owner>", {"owner": "me"}),
        ("<boxed>#<item>2#</item>#</boxed>", {"boxed": {"item": 2}}),
        ("<tags>[1, 2]#</tags>", {"tags": [1, 2]}),
        ('<place>{"x": "#</place>#<x>1#</x>"}#</place>', {"place": {"x": "#</place>#<x>1#</x>"}}),
        ('<place>#<x>"#</x>#</place>"#</x>#</place>', {"place": {"x": "#</x>#</place>"}}),
        ('<on>"#</on>" #</on>', {"on": "#</on>"}),
        ('<city>{"#</city>', {"city": '{"'}),
    ],
)
def test_values(text: str, expected: dict[str, Any]) -> None:
    marked = json.loads(json.dumps(expected).replace("#", M))
    assert read_elements(f"#{text}".replace("#", M), M, SCHEMA, SCHEMA) == marked


def test_a_call_is_emitted_when_it_ends() -> None:
    assert isinstance(MINIMAX_M3.layout, ElementLayout)
    reader = ElementCallsReader(MINIMAX_M3.layout, ["get"], {"get": SCHEMA})
    call = f'{M}<invoke name="get">{M}<days>3{M}</days>{M}</invoke>\n'
    events = [event for char in "\n" + call + call for event in reader.push(char)]
    arguments = CallArguments(json.dumps({"days": 3}))
    assert events == [CallStart("get"), arguments, CallStart("get"), arguments]
    assert reader.rest is None
    for char in f"{M}</tool_call>":
        assert reader.push(char) == []
    assert (reader.rest, reader.is_cut) == ("", False)


@pytest.mark.parametrize("whole", [False, True])
def test_the_end_of_a_call_within_a_json_string_is_text(whole: bool) -> None:
    assert isinstance(MINIMAX_M3.layout, ElementLayout)
    reader = ElementCallsReader(MINIMAX_M3.layout, ["get"], {"get": SCHEMA})
    place = {"x": f'"{M}</place>{M}</invoke>'}
    value = json.dumps({"place": place} if whole else place)
    inner = value if whole else f"{M}<place>{value}{M}</place>"
    text = f'\n{M}<invoke name="get">{inner}{M}</invoke>\n{M}</tool_call>'
    events = [event for char in text for event in reader.push(char)]
    assert events == [CallStart("get"), CallArguments(json.dumps({"place": place}))]
    assert (reader.rest, reader.is_cut) == ("", False)


def test_many_ends_within_a_json_string_take_no_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grew with the third power of their number: 400 ends took seconds."""
    looks = []
    monkeypatch.setattr(element_calls, "is_whole", lambda text: looks.append(text))
    assert isinstance(MINIMAX_M3.layout, ElementLayout)
    reader = ElementCallsReader(MINIMAX_M3.layout, ["get"], {"get": SCHEMA})
    for char in f'\n{M}<invoke name="get">{M}<place>"' + f"{M}</invoke>\n" * 400:
        reader.push(char)
    assert 0 < len(looks) < 2000


def test_a_call_that_is_cut_has_no_arguments() -> None:
    assert isinstance(MINIMAX_M3.layout, ElementLayout)
    reader = ElementCallsReader(MINIMAX_M3.layout, ["get"], {"get": SCHEMA})
    text = f'\n{M}<invoke name="get">{M}<days>3'
    assert [event for char in text for event in reader.push(char)] == [CallStart("get")]
    reader.finish()
    assert (reader.rest, reader.is_cut) == ("", True)
