"""Loads JSON that is a string inside a request body, which the body's own checks do not cover."""

import json
from typing import Any

MAX_DEPTH = 128


def load_json(text: str) -> Any:
    """Return the value. Raises `ValueError` also for JSON that cannot safely be written again.

    Such JSON is nested deeper than `MAX_DEPTH`, or escapes one half of a surrogate pair.
    """
    value = read_json(text)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json(text: str) -> Any:
    """Return the value. Raises `ValueError` also for JSON nested deeper than `MAX_DEPTH`."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    if _is_deep(value):
        raise _too_deep()
    return value


def is_same_json(a: object, b: object) -> bool:
    """Whether two values are equal in JSON, where 1 equals 1.0 but not `true`."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_same_json, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same_json(a[key], b[key]) for key in a)
    return a == b


def _too_deep() -> ValueError:
    return ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return False
    return True


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def read_json_text(text: str) -> str | None:
    """The JSON object that the JSON string `text` contains; None if it contains another text."""
    try:
        inner = load_json(text)
        return inner.strip() if isinstance(load_json(inner), dict) else None
    except (ValueError, TypeError):
        return None
