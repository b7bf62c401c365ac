"""Responses that clients may continue, fetch and refer to, kept in memory."""

import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from prometheus_client.core import Metric

from stonechat_server.observability.scraped import gauge

OVERHEAD_BYTES = 1024
"""About what a response takes beside its content."""


class _Answer(msgspec.Struct):
    output: list[msgspec.Raw]


@dataclass(slots=True, eq=False)
class StoredResponse:
    """One turn of a conversation. It shares all earlier turns with the response that it continues.

    It has its answer when that is complete, and its input from the beginning.
    """

    owner: str
    input: bytes
    """The JSON list of the items that the request adds."""
    previous: "StoredResponse | None" = None
    id: str = ""
    body: bytes = b""
    """The JSON of the whole answer."""
    last_used: float = 0.0
    num_next: int = 0
    """Responses that continue this one."""

    @property
    def num_bytes(self) -> int:
        """What it takes, without the earlier turns."""
        return OVERHEAD_BYTES + len(self.input) + len(self.body)

    @property
    def input_items(self) -> list[msgspec.Raw]:
        """The JSON of each item that the request adds."""
        return msgspec.json.decode(self.input, type=list[msgspec.Raw])

    @property
    def output_items(self) -> list[msgspec.Raw]:
        """The JSON of each item of the answer."""
        return msgspec.json.decode(self.body, type=_Answer).output

    @property
    def items(self) -> list[msgspec.Raw]:
        """The JSON of each item of this turn."""
        return self.input_items + self.output_items

    def turns(self) -> "Iterator[StoredResponse]":
        """This response and those before it, the latest first."""
        response: StoredResponse | None = self
        while response is not None:
            yield response
            response = response.previous


class ResponseStore:
    """Keeps responses, separately for each owner: the name of a key.

    All together take at most about `max_bytes` and are at most `max_responses`. One that is not
    used for `max_age` seconds is dropped. Beyond the bounds, the owner who has most loses what was
    used least recently: the last turn of a conversation before the earlier ones. If a bound is 0,
    nothing is kept.
    """

    def __init__(
        self,
        max_bytes: int,
        max_responses: int,
        max_age: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_on = min(max_bytes, max_responses, max_age) > 0
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._max_age = max_age
        self._clock = clock
        self._num_bytes: Counter[str] = Counter()
        self._kept: dict[str, OrderedDict[StoredResponse, Any]] = defaultdict(OrderedDict)
        """By owner, least recently used first. A response stands before all that it continues, so
        no other one needs the first."""
        self._by_id: dict[tuple[str, str], StoredResponse] = {}
        """Those that are complete, and not deleted."""

    @property
    def num_bytes(self) -> int:
        """What all responses take."""
        return self._num_bytes.total()

    @property
    def num_responses(self) -> int:
        """How many are kept: also those without an answer yet, and deleted ones that are needed."""
        return sum(map(len, self._kept.values()))

    def begin(self, response: StoredResponse) -> bool:
        """Keep a response that has no answer yet.

        False: there is no room for it, or what it continues has been dropped since it was found.
        """
        kept, previous = self._kept[response.owner], response.previous
        if previous is not None and previous not in kept:
            return False
        if sum(turn.num_bytes for turn in response.turns()) > self._max_bytes:
            return False
        kept[response] = None
        self._num_bytes[response.owner] += response.num_bytes
        if previous is not None:
            previous.num_next += 1
        self._use(response)
        self._make_room()
        return response in kept

    def complete(self, response: StoredResponse, id: str, body: bytes) -> bool:
        """Give a response its answer. False: it is not kept any longer."""
        kept = self._kept[response.owner]
        if response not in kept:
            return False
        response.id, response.body = id, body
        self._num_bytes[response.owner] += len(body)
        self._by_id[response.owner, id] = response
        self._use(response)
        self._make_room()
        return response in kept

    def abandon(self, response: StoredResponse) -> None:
        """Drop a response that gets no answer. One that has its answer stays."""
        if not response.body and response in self._kept[response.owner]:
            self._drop(response)

    def find(self, owner: str, id: str) -> StoredResponse | None:
        """A response of this owner by its id, which counts as used. None: it is not kept."""
        self._expire()
        response = self._by_id.get((owner, id))
        if response is not None:
            self._use(response)
        return response

    def find_items(self, owner: str, response_id: str) -> dict[str, bytes]:
        """The JSON of each item of an answer, by its id; empty if the answer is not kept."""
        self._expire()
        response = self._by_id.get((owner, response_id))
        if response is None:
            return {}
        if response.previous is None:  # with many before it, many references would take long
            self._use(response)
        items = [bytes(item) for item in response.output_items]
        return {id: item for item in items if (id := item_id(item)) is not None}

    def delete(self, response: StoredResponse) -> None:
        """Delete a response that was found. Its memory is freed when no other one continues it."""
        del self._by_id[response.owner, response.id]
        if not response.num_next:
            self._drop(response)

    def _use(self, response: StoredResponse) -> None:
        now, kept = self._clock(), self._kept[response.owner]
        for turn in response.turns():
            turn.last_used = now
            kept.move_to_end(turn)

    def _expire(self) -> None:
        oldest = self._clock() - self._max_age
        for kept in self._kept.values():
            while kept and (first := next(iter(kept))).last_used < oldest:
                self._drop(first)

    def _make_room(self) -> None:
        self._expire()
        while self.num_bytes > self._max_bytes:
            [(owner, _)] = self._num_bytes.most_common(1)
            self._drop(next(iter(self._kept[owner])))
        while self.num_responses > self._max_responses:
            owner = max(self._kept, key=lambda owner: len(self._kept[owner]))
            self._drop(next(iter(self._kept[owner])))

    def _drop(self, response: StoredResponse) -> None:
        """Drop a response that no other one continues, and what was only kept for its sake."""
        dropped: StoredResponse | None = response
        while dropped is not None:
            del self._kept[dropped.owner][dropped]
            self._num_bytes[dropped.owner] -= dropped.num_bytes
            self._by_id.pop((dropped.owner, dropped.id), None)
            dropped.input = dropped.body = b""  # its request may still hold it
            previous = dropped.previous
            if previous is None:
                return
            previous.num_next -= 1
            is_needed = previous.num_next or (previous.owner, previous.id) in self._by_id
            dropped = None if is_needed else previous


def item_id(item: bytes) -> str | None:
    """The id of an item, if it has one."""
    return msgspec.json.decode(item, type=_Item).id


class _Item(msgspec.Struct):
    id: str | None = None


def store_metrics(store: ResponseStore, model_name: str) -> Iterator[Metric]:
    """The size of a store as Prometheus metrics, with the label `model_name`."""
    text = "Responses that are kept in memory"
    yield gauge("stored_responses", text, [(model_name, store.num_responses)])
    yield gauge("stored_response_bytes", "Memory that these take", [(model_name, store.num_bytes)])
