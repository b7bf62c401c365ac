"""A pattern for any of many texts."""

import re
from collections.abc import Collection, Sequence
from itertools import groupby


def any_of(texts: Collection[str]) -> str:
    """Return a pattern for the longest of these texts at a place; for nothing without texts.

    A beginning that texts share is there once. Tokenizers have hundreds of special tokens that
    differ at their ends alone, and a regular expression would try one after the other.
    """
    return _pattern(sorted(set(texts))) if texts else "(?!)"


def _pattern(texts: Sequence[str]) -> str:
    """Return the pattern of sorted texts, of which the first may be empty."""
    first, last, length = texts[0], texts[-1], 0
    while length < len(first) and first[length] == last[length]:
        length += 1
    start, ends = first[:length], [text[length:] for text in texts]
    longer = [end for end in ends if end]
    if not longer:
        return re.escape(start)
    groups = [_pattern(list(group)) for _, group in groupby(longer, key=lambda end: end[0])]
    return f"{re.escape(start)}(?:{'|'.join(groups)}){'?' * (len(longer) < len(ends))}"
