"""Finds stop strings in a text that arrives in pieces.

The text ends where the first of the stop strings is complete; of several that end there, the
longest counts. So the answer depends on the text alone, not on how it was cut into tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request. Keeps nothing of any text: all its choices share it.

    Nothing is built from the strings either, so that thousands of characters cost nothing
    until a text begins like them.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))

    def find(self, text: str, num_seen: int) -> tuple[int, str]:
        """Return the end of the first match in `text` and its stop string; -1 and "" if none.

        Matches that end within the first `num_seen` characters do not count.
        """
        first_end, found = -1, ""
        for stop in self._stops:
            start = text.find(stop, max(0, num_seen - len(stop) + 1))
            if start < 0:
                continue
            end = start + len(stop)
            if first_end < 0 or (end, -len(stop)) < (first_end, -len(found)):
                first_end, found = end, stop
        return first_end, found

    def num_held(self, text: str) -> int:
        """Return how many last characters of `text` may still become a stop string.

        That is the longest end of `text` that begins a stop string without being all of it.
        """
        held, size = 0, len(text)
        for stop in self._stops:
            start = max(0, size - len(stop) + 1)
            at = text.find(stop[0], start, size - held)
            while at >= 0:
                if stop[size - at - 1] == text[-1] and stop.startswith(text[at:]):
                    held = size - at
                    break
                at = text.find(stop[0], at + 1, size - held)
        return held
