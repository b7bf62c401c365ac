"""The conversation behind `previous_response_id`, as items before those of the request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from pydantic import TypeAdapter

from stonechat_server.errors import APIError
from stonechat_server.request.body import check_json
from stonechat_server.responses_api.items import Item
from stonechat_server.schema.base import ListOf

if TYPE_CHECKING:
    from stonechat_server.serving.services import Services
    from stonechat_server.serving.stored_responses import StoredResponse

PREVIOUS = "previous_response_id"
OFF = "This server stores no responses."
GONE = (
    "It was made with another key or by another server process, its request had 'store' set to "
    "false, or it was deleted or dropped since. A server process has its responses in memory only."
)

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(ListOf[Item])


@dataclass(frozen=True, slots=True)
class History:
    """The conversation before a request, and its size in bytes; empty if it begins there."""

    previous: "StoredResponse | None" = None
    items: Sequence[Item] = ()
    num_bytes: int = 0


def read_history(services: "Services", owner: str, id: str | None) -> History:
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


def not_found(services: "Services", id: str) -> str:
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
