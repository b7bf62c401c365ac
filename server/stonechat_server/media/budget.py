"""Counts bytes of images, audio, videos and documents against bounds: on one request, and on all
together."""

from collections.abc import Callable

from stonechat_server.admission.refusals import too_many_requests
from stonechat_server.errors import APIError


class Budget:
    """A bound on the bytes of all requests together."""

    def __init__(self, limit: int) -> None:
        self.num_bytes = 0
        self._limit = limit

    def take(self, num_bytes: int) -> None:
        """Count bytes. Raises `RefusedError` 429, and counts nothing, if they are too many."""
        if num_bytes > 0 and self.num_bytes + num_bytes > self._limit:
            raise busy()
        self.num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Count bytes no longer."""
        self.num_bytes -= num_bytes


class Share:
    """What one request has of a budget: `limit` bytes at most; `error` tells of more."""

    def __init__(self, budget: Budget, limit: int, error: Callable[[int], APIError]) -> None:
        self.budget = budget
        self._limit = limit
        self._error = error
        self._num_taken = self._num_own = 0

    def take(self, num_bytes: int) -> None:
        """Count bytes. Raises `APIError`, and counts nothing, if they are too many."""
        if self._num_taken + num_bytes > self._limit:
            raise self._error(self._limit)
        self.take_made(num_bytes)
        self._num_taken += num_bytes

    def take_made(self, num_bytes: int) -> None:
        """Count bytes that were made here: they have no limit in one request."""
        self.budget.take(num_bytes)
        self._num_own += num_bytes

    def hand_over(self, num_bytes: int) -> None:
        """Leave it to the caller to give these bytes back to the budget."""
        self._num_own -= num_bytes

    def close(self) -> None:
        """Give back the memory that nothing prepared has taken."""
        self.budget.give_back(self._num_own)
        self._num_own = 0


def busy() -> APIError:
    """429: the client may try again when other requests have ended."""
    return too_many_requests(
        "The files of too many requests are being loaded. Try again later.",
        reason="images_full",
        retry_after=1.0,
    )
