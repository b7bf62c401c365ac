"""A cache that is bounded by the bytes of its values."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that knows its size."""

    @property
    def num_bytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class RecentlyUsed(Generic[Value]):
    """The values that were used last, by content hash, up to `max_bytes` together.

    A value that is larger is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._values: OrderedDict[bytes, Value] = OrderedDict()

    def __contains__(self, content_hash: bytes) -> bool:
        return content_hash in self._values

    def find(self, content_hash: bytes) -> Value | None:
        """Return a value, which is then the one used last."""
        value = self._values.get(content_hash)
        if value is not None:
            self._values.move_to_end(content_hash)
        return value

    def keep(self, content_hash: bytes, value: Value) -> None:
        """Make this the value used last. Drop those that were used longest ago."""
        old = self._values.pop(content_hash, None)
        if old is not None:
            self.num_bytes -= old.num_bytes
        if value.num_bytes > self._max_bytes:
            return
        self._values[content_hash] = value
        self.num_bytes += value.num_bytes
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._values.popitem(last=False)[1].num_bytes
