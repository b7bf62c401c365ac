"""Finds stop strings in a text that arrives in pieces (Aho and Corasick, CACM 18(6), 1975).

The text ends where the first of the stop strings is complete; of several that end there, the
longest counts. So the answer depends on the text alone, not on how it was cut into tokens.
"""

from collections import deque
from collections.abc import Sequence


class StopAutomaton:
    """All stop strings of a request in one machine. Immutable: choices keep only a state, an int.

    State 0 is the beginning. A step costs one dictionary look-up or a few, however many strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._match: list[str | None] = [None]
        depths = [0]
        for stop in stops:
            state = 0
            for char in stop:
                found = self._next[state].get(char)
                if found is None:
                    found = len(depths)
                    self._next[state][char] = found
                    self._next.append({})
                    self._match.append(None)
                    depths.append(depths[state] + 1)
                state = found
            self._match[state] = stop
        self._fallback = [0] * len(depths)
        self.held = [0] * len(depths)
        """Per state: how many last characters may still become (part of) a stop string."""
        self._link(depths)

    def _link(self, depths: list[int]) -> None:
        """Give each state, shallow ones first, the state of its longest proper suffix."""
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            fallback = self._fallback[state]
            self._match[state] = self._match[state] or self._match[fallback]
            self.held[state] = depths[state] if self._next[state] else self.held[fallback]
            for char, child in self._next[state].items():
                self._fallback[child] = self._step(fallback, char)
                waiting.append(child)

    def _step(self, state: int, char: str) -> int:
        while True:
            found = self._next[state].get(char)
            if found is not None:
                return found
            if state == 0:
                return 0
            state = self._fallback[state]

    def find(self, state: int, text: str) -> tuple[int, int, str]:
        """Go on from `state` over `text`: (new state, end, stop) at the first stop string to end.

        `end` counts the characters of `text` up to the end of the match; -1 and "" without one.
        """
        for end, char in enumerate(text, 1):
            state = self._step(state, char)
            stop = self._match[state]
            if stop is not None:
                return state, end, stop
        return state, -1, ""

    def skip(self, state: int, text: str) -> int:
        """Go on from `state` over `text` where no match counts; return the new state."""
        for char in text:
            state = self._step(state, char)
        return state
