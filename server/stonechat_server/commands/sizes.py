"""Sizes and counts in a short form for people."""

import re

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
         "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


def format_bytes(value: int) -> str:
    """Format a number of bytes with a decimal unit, such as `95.4 MB`."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value} B"


def format_count(value: int) -> str:
    """Format a count with a decimal unit, such as `134.5 M`."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return str(value)


def parse_bytes(text: str) -> int:
    """The number of bytes of `2GiB`, `500MB` or `1000`. Raises ValueError for other texts."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    if match is None:
        raise ValueError(f"not a size: {text!r}")
    return int(float(match[1]) * UNITS[match[2]])
