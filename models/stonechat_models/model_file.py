"""Reads a model's files: whatever is wrong with one becomes a `ModelLoadError` with its name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stonechat_models.errors import EngineError, ModelLoadError

MAX_REASON = 200
LFS_POINTER = b"version https://git-lfs"


@contextmanager
def reading(source: Path | str) -> Iterator[None]:
    """Turn any exception in the block into a `ModelLoadError` that names `source`.

    `source` is the path of a file, or the name of a whole model. Only the engine's own errors and
    interrupts pass unchanged. The libraries that read model files raise many types, and a panic in
    `tokenizers` is not even an `Exception`.
    """
    try:
        yield
    except (EngineError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise ModelLoadError(_problem(source, error)) from error


def _problem(source: Path | str, error: BaseException) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # of torch
        return f"there is not enough memory to load {source}"
    if isinstance(source, str):
        return f"cannot load {source}: {reason_of(error)}"
    if isinstance(error, OSError):
        return f"cannot read {source}: {reason_of(error)}"
    if _is_pointer(source):
        return f"{source} only points to the file; `git lfs pull` fetches it"
    kind = source.suffix.removeprefix(".")
    return (
        f"cannot read {source}: it is not a valid {kind} file; download it again: "
        f"{reason_of(error)}"
    )


def _is_pointer(path: Path) -> bool:
    """Whether a file of a repository was cloned without Git LFS."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER
    return False


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception's message, shortened, with its type if that helps."""
    lines = str(error).strip().splitlines()
    text = lines[0][:MAX_REASON] if lines else "no message"
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if there is no such file.

    Raises `ModelLoadError` for a file that cannot be read or holds no object.
    """
    if not path.exists():
        return None
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object; download it again")
    return content
