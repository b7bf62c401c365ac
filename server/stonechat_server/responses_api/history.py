"""What a request takes of earlier answers: a whole conversation, or items that it refers to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from pydantic import TypeAdapter

from stonechat_server.errors import APIError, invalid
from stonechat_server.request.body import check_json
from stonechat_server.responses_api.items import Item, ItemReference
from stonechat_server.responses_api.marks import response_id_of
from stonechat_server.schema.base import ListOf
from stonechat_server.serving.services import Services
from stonechat_server.serving.stored_responses import StoredResponse

PREVIOUS = "previous_response_id"
OFF = "This server stores no responses."
GONE = (
    "It was made with another key or by another server process, its request had 'store' set to "
    "false, or it was deleted or dropped since. A server process has its responses in memory only."
)

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(ListOf[Item])
_ITEM: TypeAdapter[Item] = TypeAdapter(Item)


@dataclass(frozen=True, slots=True)
class History:
    """The conversation before a request, and its size in bytes; empty if it begins there."""

    previous: StoredResponse | None = None
    items: Sequence[Item] = ()
    num_bytes: int = 0


def read_history(services: Services, owner: str, id: str | None) -> History:
    """The conversation up to the response with this id.

    Raises `APIError` 400 if it is not kept, or larger than a request may be.
    """
    if id is None:
        return History()
    response = services.responses.find(owner, id)
    if response is None:
        message = (
            f"Previous response {not_found(services, id)} Send the conversation's items in 'input'."
        )
        raise APIError(400, message, param=PREVIOUS, code="previous_response_not_found")
    items: list[bytes] = []
    num_bytes = 0
    for turn in response.turns():
        added = [bytes(item) for item in reversed(turn.items)]
        items += added
        num_bytes += sum(map(len, added))
        if num_bytes > services.max_body_bytes:
            raise _too_large(f"It has more than {services.max_body_bytes} bytes.")
    content = b"[%b]" % b",".join(reversed(items))
    most_values = sum(map(content.count, (b"[", b"{", b",")))
    if most_values > services.settings.max_json_values:  # the rest was checked when it came
        try:
            check_json(content, services.settings)
        except APIError as error:
            raise _too_large(error.message) from error
    return History(response, _ITEMS.validate_json(content), len(content))


def not_found(services: Services, id: str) -> str:
    """Say of a response that there is none with this id, and why that may be."""
    reason = GONE if services.responses.is_on else OFF
    return f"with id '{id[:100]}' not found. {reason}"


def _too_large(reason: str) -> APIError:
    message = f"The conversation before this request is larger than a request may be. {reason}"
    return APIError(400, message, param=PREVIOUS, code="request_too_large")


def dump_input(given: str | Sequence[Item]) -> bytes:
    """The items of a request's input as a JSON list."""
    if isinstance(given, str):
        return msgspec.json.encode([{"type": "message", "role": "user", "content": given}])
    return _ITEMS.dump_json(list(given), exclude_unset=True)


@dataclass(slots=True, kw_only=True)
class References:
    """Replaces references to items of earlier answers by the items, for one request.

    A reference is short and its item may be long, so their number and their bytes are bounded.
    """

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
            raise _too_many(path, f"more than {self.max_references} items")
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
            raise _too_many(path, f"items of more than {self.max_bytes} bytes together")
        return item


def _too_many(path: str, what: str) -> APIError:
    message = f"'{path}': the input refers to {what}, which is more than a request may have."
    return APIError(400, message, param=path, code="request_too_large")


def _unknown(path: str, id: str) -> APIError:
    return invalid(
        path,
        f"Item '{id[:100]}' is not known here: it is of another server or key, its answer had "
        "store: false, or it was dropped to make room. Send the item itself.",
        code="item_not_found",
    )
