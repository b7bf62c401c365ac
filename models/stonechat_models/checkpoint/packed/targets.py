"""Patterns of modules, as `re:` targets of compressed-tensors, matched in linear time.

They come from model files, and a backtracking matcher may never end with some. So this one follows
all ways at once: a set of places in the module's path is an integer with a bit for each. It reads
the regular expressions that name modules: characters, classes, `.`, `^`, `$`, groups with
alternatives, what must not follow, and `?`, `*` and `+`, but no groups that repeat.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache

MAX_PATTERN = 4096
"""The longest pattern, in characters."""
MAX_PATH = 1024
"""The longest path of a module, in characters."""
MAX_DEPTH = 8
"""How deep groups may lie in groups."""
ESCAPED = r"\\[^a-zA-Z0-9]|\\[dDwW]"
ATOM = re.compile(rf"{ESCAPED}|\[\^?(?:{ESCAPED}|[^][\\])+\]|[\w\s/:<>=,.-]")


class PatternError(ValueError):
    """A pattern has a form that is not read."""


@lru_cache(maxsize=1024)
def is_match(pattern: str, path: str) -> bool:
    """Whether the path begins with a match of the pattern, as `re.match` says.

    Raises `PatternError` for a pattern of a form that is not read, or a path that is too long.
    """
    if len(pattern) > MAX_PATTERN or len(path) > MAX_PATH:
        raise PatternError
    matcher = _Matcher(pattern, path)
    ends = matcher.alternatives(1)
    if matcher.place < len(pattern):
        raise PatternError
    return ends != 0


@dataclass(slots=True)
class _Matcher:
    """Reads a pattern from `place` on. Each method takes the places in the path where a part of it
    begins, and returns those where the part ends."""

    pattern: str
    path: str
    place: int = 0
    depth: int = 0
    looks_ahead: bool = False
    found: dict[str, int] = field(default_factory=dict)
    """The places of the characters that each atom matches."""

    def alternatives(self, starts: int) -> int:
        ends = self._sequence(starts)
        while self._takes("|"):
            ends |= self._sequence(starts)
        return ends

    def _sequence(self, starts: int) -> int:
        while self.place < len(self.pattern) and self.pattern[self.place] not in "|)":
            starts = self._item(starts)
        return starts

    def _item(self, starts: int) -> int:
        if self._takes("^"):
            return starts & 1
        if self._takes("$"):
            return starts & (1 << len(self.path))
        if self._takes("(?!"):
            return self._not_before(starts)
        if self._takes("("):
            return self._group(starts)
        atom = ATOM.match(self.pattern, self.place)
        if atom is None:
            raise PatternError
        self.place = atom.end()
        return self._repeated(starts, self._places_of(atom[0]))

    def _not_before(self, starts: int) -> int:
        """The places where the group does not match. Each is tried on its own."""
        if self.looks_ahead:
            raise PatternError
        self.looks_ahead = True
        begin, kept = self.place, starts
        self._inside(0)
        end = self.place
        for i in range(starts.bit_length()):
            self.place = begin
            if starts >> i & 1 and self._inside(1 << i):
                kept ^= 1 << i
        self.place, self.looks_ahead = end, False
        return kept

    def _inside(self, starts: int) -> int:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise PatternError
        ends = self.alternatives(starts)
        self.depth -= 1
        if not self._takes(")"):
            raise PatternError
        return ends

    def _group(self, starts: int) -> int:
        self._takes("?:")
        ends = self._inside(starts)
        return ends | starts if self._takes("?") else ends

    def _repeated(self, starts: int, places: int) -> int:
        once = (starts & places) << 1
        if self._takes("?"):
            ends = starts | once
        elif self._takes("*"):
            ends = _run(starts, places)
        elif self._takes("+"):
            ends = _run(once, places)
        else:
            return once
        self._takes("?")  # the shortest match first: the same paths match
        return ends

    def _takes(self, text: str) -> bool:
        """Whether the pattern goes on with the text, which is then read."""
        is_next = self.pattern.startswith(text, self.place)
        self.place += len(text) * is_next
        return is_next

    def _places_of(self, atom: str) -> int:
        if atom not in self.found:
            is_plain = len(atom) == 1 and atom != "."
            matches = atom.__eq__ if is_plain else _compiled(atom).match
            self.found[atom] = sum(1 << i for i, c in enumerate(self.path) if matches(c))
        return self.found[atom]


def _compiled(atom: str) -> re.Pattern[str]:
    try:
        return re.compile(atom)
    except re.error as error:
        raise PatternError from error


def _run(starts: int, places: int) -> int:
    """The places that steps over `places` reach: adding carries a bit through a run of ones."""
    return (((starts & places) + places) ^ places) | starts
