"""Finds what a misspelt name may mean."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

SIMILARITY = 0.7
MIN_START = 3
"""Characters of a word that may be the beginning of a longer name."""


def nearest(word: str, spellings: Mapping[str, str]) -> str | None:
    """Return the name whose spelling is most like `word`, or None. Case does not count.

    If none is much like it, that is the shortest one that begins with it.
    """
    by_folded = {spelling.casefold(): name for spelling, name in spellings.items()}
    folded = word.casefold()
    found = get_close_matches(folded, by_folded, n=1, cutoff=SIMILARITY)
    if not found and len(folded) >= MIN_START:
        found = sorted((s for s in by_folded if s.startswith(folded)), key=len)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str], otherwise: str) -> str:
    """Return the end of a sentence: what `word` may mean, or else `; ` and `otherwise`."""
    found = nearest(word, {name: name for name in names})
    return f"; did you mean {found}?" if found else f"; {otherwise}"
