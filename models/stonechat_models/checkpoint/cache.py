"""The user's cache folder: where fetched and converted models are kept, each written once.

A folder in the cache is either complete or absent: it is built under another name and renamed. A
lock beside it keeps two processes from building the same folder.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from stonechat_models.errors import ModelLoadError

Progress = Callable[[str], None]

HEADER_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 14
NUM_SAMPLES = 64


def cache_root() -> Path:
    """The cache folder of this user (on Linux under `$XDG_CACHE_HOME`); it may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("stonechat", appauthor=False)


def build_once(folder: Path, progress: Progress, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` has filled it if it was not there.

    `build` is given an empty folder to fill; what it raises leaves no trace in the cache.
    Raises `ModelLoadError` when the cache cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock"), progress):
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise ModelLoadError(f"cannot write the cache folder {folder.parent}: {error}") from error
    return folder


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting for another process that prepares {path.stem}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(temporary)
        temporary.chmod(0o755)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sampled_hash(paths: list[Path]) -> str:
    """A hash of large files that reads little of each: its size, its header, and samples of it.

    It does not depend on the files' names, places or times. Two files that differ only between
    the samples have the same hash, so it tells models apart and is no protection.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(HEADER_BYTES))
            for i in range(1, NUM_SAMPLES + 1):
                offset = (size - SAMPLE_BYTES) * i // NUM_SAMPLES
                if offset > HEADER_BYTES:
                    file.seek(offset)
                    digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
