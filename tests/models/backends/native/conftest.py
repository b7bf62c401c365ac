"""Skips the tests of this folder if there is no C++ compiler."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from stonechat_models.backends.native.compile import find_compiler

    if find_compiler() is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="there is no C++ compiler"))
