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

UTILS = "transformers.utils.import_utils"


def import_transformers() -> None:
    """Import what all models need of transformers, unless that is done."""
    if "transformers.modeling_utils" in sys.modules:
        return
    with _without(UNUSED):
        with _known_models(import_module(UTILS)):
            import_module("transformers.models")
        for name in ("modeling_utils", "masking_utils"):
            import_module(f"transformers.{name}")


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Inside, packages seem not to be installed, unless transformers has looked for them before.

    It keeps what it has found, and would then import a package that is hidden.
    """
    modules: dict[str, Any] = sys.modules
    hidden = [name for name in names if name not in modules and not _answers(name)]
    modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
            if _answers(name):
                getattr(modules[UTILS], f"is_{name}_available").cache_clear()


def _answers(name: str) -> int:
    """How many answers transformers keeps to the question whether a package is there."""
    check: Any = getattr(sys.modules.get(UTILS), f"is_{name}_available", None)
    return check.cache_info().currsize if hasattr(check, "cache_info") else 0


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
