"""Imports transformers in less time, by leaving out what serving does not need."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

UNUSED = ("scipy", "torchao")
"""Packages that transformers imports if they are installed: for losses of training, and for
checkpoints that it does not load here."""


def import_transformers() -> None:
    """Import what all models need of transformers, unless that is done."""
    if "transformers.modeling_utils" in sys.modules:
        return
    import_utils = import_module("transformers.utils.import_utils")
    with _without(UNUSED, import_utils):
        with _known_models(import_utils):
            import_module("transformers.models")
        for name in ("modeling_utils", "masking_utils"):
            import_module(f"transformers.{name}")


@contextmanager
def _without(names: tuple[str, ...], import_utils: Any) -> Iterator[None]:
    """Inside, packages seem not to be installed, unless transformers has found them before.

    It keeps what it has found, and would then import a package that is hidden.
    """
    modules: dict[str, Any] = sys.modules
    checks = {name: getattr(import_utils, f"is_{name}_available", None) for name in names}
    hidden = [name for name in names if name not in modules and _is_unasked(checks[name])]
    modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
            checks[name].cache_clear()


def _is_unasked(check: Any) -> bool:
    """Whether a cached function has not been called."""
    return hasattr(check, "cache_info") and not check.cache_info().currsize


@contextmanager
def _known_models(import_utils: Any) -> Iterator[None]:
    """Inside, transformers does not read the files of all models a second time.

    It has read them for the names in `transformers`, and would read them for `transformers.models`.
    """
    define = getattr(import_utils, "define_import_structure", None)
    if define is None:  # another version reads them in another way
        yield
        return
    folder = Path(import_utils.__file__).parents[1] / "models"
    names = define(folder, prefix="models")  # those that it keeps

    def define_once(path: str, prefix: str | None = None) -> Any:
        if prefix is not None or Path(path) != folder / "__init__.py":
            return define(path, prefix)
        return {
            backends: {
                module.removeprefix("models."): objects
                for module, objects in modules.items()
                if module.startswith("models.")
            }
            for backends, modules in names.items()
        }

    import_utils.define_import_structure = define_once
    try:
        yield
    finally:
        import_utils.define_import_structure = define
