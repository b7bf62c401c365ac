"""Marks cases of a large cross product, of which the default run needs only some."""

from typing import Any

import pytest


def nightly(*values: Any) -> list[Any]:
    """Return the values as parameters that `scripts/test` leaves out by default."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]
