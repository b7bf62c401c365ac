"""Marks cases of a large cross product, of which the default run needs only some."""

from collections.abc import Iterable
from typing import Any

import pytest


def nightly(*values: Any) -> list[Any]:
    """Return the values as parameters that `scripts/test` leaves out by default."""
    return [pytest.param(value, marks=pytest.mark.nightly) for value in values]


def one_in(step: int, values: Iterable[Any]) -> list[Any]:
    """Return the values as parameters, of which the default run takes one in `step`."""
    every = list(values)
    return [*every[::step], *nightly(*(v for i, v in enumerate(every) if i % step))]
