"""Collects no cases of schemathesis that the marks leave out: to list them takes seconds."""

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pycollect_makeitem(
    collector: pytest.Collector, obj: Any
) -> Generator[None, object, object]:
    """Return no items for a nightly test if nightly tests are left out."""
    items = yield
    marks = {mark.name for mark in getattr(obj, "pytestmark", ())}
    is_left_out = "nightly" in marks and collector.config.option.markexpr == "not nightly"
    return [] if is_left_out else items
