"""Finds what a misspelt word may have meant."""

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like `word`; None if none is like it. Case does not count."""
    from difflib import get_close_matches  # only errors need it

    by_folded = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: `; did you mean X?`, or nothing if no known word is like `word`."""
    found = nearest(word, known)
    return f"; did you mean {found}?" if found else ""
