"""A cache for converted files. The tests of this folder are skipped if there is no compiler."""

from pathlib import Path

import pytest

from tests.models.compiled_cache import use_model_cache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from stonechat_models.backends.native.compile import find_compiler

    if find_compiler() is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="there is no C++ compiler"))


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of models, with the library that is compiled already."""
    use_model_cache(tmp_path / "cache", monkeypatch)
