"""Finds what a misspelt name may mean."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

SIMILARITY = 0.7


def nearest(word: str, spellings: Mapping[str, str]) -> str | None:
    """Return the name whose spelling is most like `word`, or None. Case does not count."""
    by_folded = {spelling.casefold(): name for spelling, name in spellings.items()}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=SIMILARITY)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str], otherwise: str) -> str:
    """Return the end of a sentence: what `word` may mean, or else `; ` and `otherwise`."""
    found = nearest(word, {name: name for name in names})
    return f"; did you mean {found}?" if found else f"; {otherwise}"
