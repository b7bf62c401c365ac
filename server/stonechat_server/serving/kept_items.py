"""Items of earlier answers, kept in memory for clients that refer to them by id."""

from collections import OrderedDict

OVERHEAD_BYTES = 512
"""About what an item takes beside its content."""


class KeptItems:
    """Maps the ids of items to their content, separately for each tenant.

    All items together take at most about `max_bytes`. The least recently used ones go first. 0
    keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._items: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def keep(self, tenant: str, id: str, content: bytes) -> None:
        """Keep an item. An item that is larger than the bound is not kept."""
        self._drop((tenant, id))
        if len(content) + OVERHEAD_BYTES > self.max_bytes:
            return
        self._items[tenant, id] = content
        self.num_bytes += len(content) + OVERHEAD_BYTES
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._items)))

    def find(self, tenant: str, id: str) -> bytes | None:
        """The content of an item; None if it is not kept, or not for this tenant."""
        content = self._items.get((tenant, id))
        if content is not None:
            self._items.move_to_end((tenant, id))
        return content

    def _drop(self, key: tuple[str, str]) -> None:
        content = self._items.pop(key, None)
        if content is not None:
            self.num_bytes -= len(content) + OVERHEAD_BYTES
