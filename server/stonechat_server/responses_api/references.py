"""Replaces references to items of earlier answers by the items.

A reference is short and its item may be long, so their number and their bytes are bounded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from stonechat_server.errors import APIError, invalid
from stonechat_server.responses_api.ids import response_id_of
from stonechat_server.responses_api.items import Item, ItemReference

_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


@dataclass(slots=True, kw_only=True)
class References:
    """Finds the items that one request refers to."""

    find: Callable[[str], Mapping[str, bytes]]
    """Returns the JSON of each item of an answer that is kept, by the answer's id."""
    max_references: int
    max_bytes: int
    """Bounds the items of all references; an item counts once for each."""
    num_references: int = field(default=0, init=False)
    num_bytes: int = field(default=0, init=False)
    _found: dict[str, tuple[Item, int]] = field(default_factory=dict, init=False)
    """Items that are parsed, and their sizes in bytes."""
    _answers: dict[str, Mapping[str, bytes]] = field(default_factory=dict, init=False)

    def resolved(self, given: str | Sequence[Item]) -> str | Sequence[Item]:
        """Return the input without references.

        Raises `APIError` 400 for an item that is not kept, and beyond the bounds.
        """
        if isinstance(given, str):
            return given
        return [
            self._resolve(item.id, f"input[{i}].id") if isinstance(item, ItemReference) else item
            for i, item in enumerate(given)
        ]

    def _resolve(self, id: str, path: str) -> Item:
        self.num_references += 1
        if self.num_references > self.max_references:
            raise _too_large(path, f"more than {self.max_references} items")
        if id not in self._found:
            answer_id = response_id_of(id)
            if answer_id not in self._answers:
                self._answers[answer_id] = self.find(answer_id)
            content = self._answers[answer_id].get(id)
            if content is None:
                raise _unknown(path, id)
            self._found[id] = _ITEM.validate_json(content), len(content)
        item, num_bytes = self._found[id]
        self.num_bytes += num_bytes
        if self.num_bytes > self.max_bytes:
            raise _too_large(path, f"items of more than {self.max_bytes} bytes together")
        return item


def _too_large(path: str, what: str) -> APIError:
    message = f"'{path}': the input refers to {what}, which is more than a request may have."
    return APIError(400, message, param=path, code="request_too_large")


def _unknown(path: str, id: str) -> APIError:
    return invalid(
        path,
        f"Item '{id[:100]}' is not known here: it is of another server or key, its answer had "
        "store: false, or it was dropped to make room. Send the item itself.",
        code="item_not_found",
    )
