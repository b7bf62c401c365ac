"""Finds stop strings in a text that arrives in pieces.

The text ends at the first position where a stop string is complete. If several are complete there,
the longest counts. So the result depends only on the text, not on how it is cut into tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request. It keeps no state of a text, so all choices share it.

    Nothing is computed from a stop string before a text begins like it. So even a string of
    thousands of characters costs nothing until then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(_Stop(stop) for stop in dict.fromkeys(stops))

    def new_match(self) -> "StopMatch":
        """Return a match for a new text, at its start."""
        return StopMatch(self._stops)


class _Stop:
    """A stop string with its failure function (Knuth, Morris and Pratt), computed lazily."""

    __slots__ = ("borders", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.borders = [0]
        """Entry i is `border(i + 1)`."""

    def advance(self, num_matched: int, piece: str) -> tuple[int, int]:
        """Continue in `piece` when `num_matched` characters of the string match so far.

        If the string is not completed, return how many characters of it the end of the piece
        matches, and -1. Otherwise return the length of the string, and the number of characters of
        the piece up to the end of the first match.
        """
        text = self.text
        position = 0
        while position < len(piece):
            if num_matched == 0:
                position = piece.find(text[0], position)
                if position < 0:
                    return 0, -1
            num_matched = self._next(num_matched, piece[position])
            position += 1
            if num_matched == len(text):
                return num_matched, position
        return num_matched, -1

    def _next(self, num_matched: int, char: str) -> int:
        while num_matched and self.text[num_matched] != char:
            num_matched = self.border(num_matched)
        return num_matched + (self.text[num_matched] == char)

    def border(self, length: int) -> int:
        """Return the length of the longest proper border of the first `length` characters."""
        borders, text = self.borders, self.text
        while len(borders) < length:
            border, char = borders[-1], text[len(borders)]
            while border and text[border] != char:
                border = borders[border - 1]
            borders.append(border + (text[border] == char))
        return borders[length - 1]


class StopMatch:
    """Tracks how far the end of one text matches each stop string, in time linear in the text."""

    def __init__(self, stops: Sequence[_Stop]) -> None:
        self._stops = stops
        self._num_matched = [0] * len(stops)

    def find(self, piece: str) -> tuple[int, str]:
        """Continue with the text's next piece.

        If a stop string is complete, return the number of characters of the piece up to its end,
        and the string. The match is then over. Otherwise return -1 and "".
        """
        first_end, first_stop = -1, ""
        for i, stop in enumerate(self._stops):
            self._num_matched[i], end = stop.advance(self._num_matched[i], piece)
            if end >= 0 and (
                first_end < 0 or (end, -len(stop.text)) < (first_end, -len(first_stop))
            ):
                first_end, first_stop = end, stop.text
        return first_end, first_stop

    def skip(self, piece: str) -> None:
        """Continue with a piece in which no stop string counts."""
        for i, stop in enumerate(self._stops):
            rest = piece
            num_matched, end = stop.advance(self._num_matched[i], rest)
            while end >= 0:
                rest = rest[end:]
                num_matched, end = stop.advance(stop.border(len(stop.text)), rest)
            self._num_matched[i] = num_matched

    @property
    def num_held(self) -> int:
        """Number of characters at the end of the text that may still become a stop string.

        They are the longest end of the text that begins a stop string without completing it.
        """
        return max(self._num_matched, default=0)
