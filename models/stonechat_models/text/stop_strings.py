"""Finds stop strings in a text that arrives in pieces.

The text ends where the first of the stop strings is complete; of several that end there, the
longest counts. So the answer depends on the text alone, not on how it was cut into tokens.
"""

from collections.abc import Sequence


class StopStrings:
    """The stop strings of a request. Keeps nothing of any text: all its choices share it.

    Nothing is built from the strings before a text begins like them, so that thousands of
    characters cost nothing until then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(_Stop(stop) for stop in dict.fromkeys(stops))

    def new_match(self) -> "StopMatch":
        """Follow a text from its start."""
        return StopMatch(self._stops)


class _Stop:
    """A stop string with its failure function (Knuth, Morris and Pratt), made as far as needed."""

    __slots__ = ("borders", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.borders = [0]
        """Entry i is `border(i + 1)`."""

    def advance(self, matched: int, piece: str) -> tuple[int, int]:
        """Go on in `piece` from a match of so many characters.

        Return how much of the string the end of the piece matches, and -1; or the whole length
        and the number of characters of the piece up to the end of the first match.
        """
        text = self.text
        at = 0
        while at < len(piece):
            if matched == 0:
                at = piece.find(text[0], at)
                if at < 0:
                    return 0, -1
            matched = self._next(matched, piece[at])
            at += 1
            if matched == len(text):
                return matched, at
        return matched, -1

    def _next(self, matched: int, char: str) -> int:
        while matched and self.text[matched] != char:
            matched = self.border(matched)
        return matched + (self.text[matched] == char)

    def border(self, length: int) -> int:
        """Length of the longest proper border of the first `length` characters."""
        borders, text = self.borders, self.text
        while len(borders) < length:
            border, char = borders[-1], text[len(borders)]
            while border and text[border] != char:
                border = borders[border - 1]
            borders.append(border + (text[border] == char))
        return borders[length - 1]


class StopMatch:
    """How far the end of one text matches each stop string. Linear in the text, whatever it is."""

    def __init__(self, stops: Sequence[_Stop]) -> None:
        self._stops = stops
        self._matched = [0] * len(stops)

    def find(self, piece: str) -> tuple[int, str]:
        """Go on with the text's next piece.

        Return how many of its characters there are up to the end of the first stop string, and
        that string: then the match is over. Otherwise -1 and "".
        """
        first_end, found = -1, ""
        for i, stop in enumerate(self._stops):
            self._matched[i], end = stop.advance(self._matched[i], piece)
            if end >= 0 and (first_end < 0 or (end, -len(stop.text)) < (first_end, -len(found))):
                first_end, found = end, stop.text
        return first_end, found

    def skip(self, piece: str) -> None:
        """Go on with a piece in which no stop string counts."""
        for i, stop in enumerate(self._stops):
            rest = piece
            matched, end = stop.advance(self._matched[i], rest)
            while end >= 0:
                rest = rest[end:]
                matched, end = stop.advance(stop.border(len(stop.text)), rest)
            self._matched[i] = matched

    @property
    def num_held(self) -> int:
        """How many last characters of the text may still become a stop string.

        That is the longest end of the text that begins a stop string without being all of it.
        """
        return max(self._matched, default=0)
