"""The argument in which a module takes its cache."""

import inspect
from collections.abc import Callable
from typing import Any

CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state")
"""Its names: `cache` since transformers 5.24; others before that, and in models' own code."""


def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name under which a function takes the cache; "" if it takes none."""
    parameters = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in parameters), "")
