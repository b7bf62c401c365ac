"""The list of the items that a stored response was made from, in the form of the published API."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from stonechat_server.errors import invalid
from stonechat_server.responses_api.answer import ResponseItemList
from stonechat_server.responses_api.marks import item_id
from stonechat_server.serving.stored_responses import StoredResponse

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "additional_tools": "at",
}


class _Item(msgspec.Struct):
    type: str
    id: str | None = None


def list_items(
    response: StoredResponse, *, limit: int, is_descending: bool, after: str | None
) -> ResponseItemList:
    """A page of the items before an answer: those of earlier turns, and those of its own request.

    Raises `APIError` 400 if there is no item `after`.
    """
    found = list(_with_ids(response))
    if is_descending:
        found.reverse()
    start = 0
    if after is not None:
        start = next((i for i, (id, _) in enumerate(found, 1) if id == after), 0)
        if not start:
            raise invalid("after", f"There is no item '{after[:100]}' in this list.")
    page = [(id, _as_published(id, item)) for id, item in islice(found, start, start + limit)]
    return ResponseItemList(
        data=[item for _, item in page],
        first_id=page[0][0] if page else "",
        last_id=page[-1][0] if page else "",
        has_more=start + len(page) < len(found),
    )


def _with_ids(response: StoredResponse) -> Iterator[tuple[str, msgspec.Raw]]:
    """The items, the oldest first. One without an id, or with that of another one, gets its own."""
    seen: set[str] = set()
    for turn in reversed(list(response.turns())):
        items = turn.input_items if turn is response else turn.items
        for number, item in enumerate(items):
            known = msgspec.json.decode(item, type=_Item)
            id = known.id
            if not id or id in seen:
                id = item_id(PREFIXES.get(known.type, "item"), turn.id, number, "in")
            seen.add(id)
            yield id, item


def _as_published(id: str, item: msgspec.Raw) -> dict[str, Any]:
    """An item with the fields that the API requires, and its text in parts."""
    fields = given_fields(msgspec.json.decode(item))
    match fields["type"]:
        case "message" if fields["role"] == "assistant":
            fields["content"] = _parts(fields["content"], "output_text")
        case "message":
            fields["content"] = _parts(fields["content"], "input_text")
        case "function_call_output" | "custom_tool_call_output":
            if isinstance(fields["output"], list):
                fields["output"] = _parts(fields["output"], "input_text")
        case "reasoning":
            fields.setdefault("summary", [])
            if "content" in fields:
                fields["content"] = _parts(fields["content"], "reasoning_text")
    return {"status": "completed", **fields, "id": id}


def given_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in fields.items() if value is not None}


def _parts(content: str | list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return [
        {**more, **part, "type": kind}
        if "text" in part
        else {"detail": "auto", **part}
        if part["type"] == "input_image"
        else part
        for part in map(given_fields, content)
    ]
