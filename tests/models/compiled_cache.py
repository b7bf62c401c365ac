"""An empty cache of models, in which the compiled library is not built again."""

from contextlib import suppress
from pathlib import Path

import pytest

from stonechat_models.errors import ModelLoadError


def use_model_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make `folder` the user's cache. It shares only the compiled library with the real one."""
    from stonechat_models.backends.native.bindings import load_library
    from stonechat_models.checkpoint.cache import cache_root

    (folder / "stonechat").mkdir(parents=True)
    with suppress(ModelLoadError):  # there is no compiler
        load_library()
        (folder / "stonechat" / "native").symlink_to(cache_root() / "native")
    patch.setenv("XDG_CACHE_HOME", str(folder))
