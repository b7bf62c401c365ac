"""The user's cache folder. It keeps fetched and converted models, each written once.

A folder in the cache is complete or absent: it is filled under a temporary name, then renamed. A
lock file beside it keeps two processes from filling it at the same time. It is deleted afterwards.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from stonechat_models.errors import ModelLoadError

Progress = Callable[[str], None]

HEADER_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 14
NUM_SAMPLES = 64


def cache_root() -> Path:
    """Return the user's cache folder, on Linux under `$XDG_CACHE_HOME`. It may not exist yet."""
    from platformdirs import user_cache_path

    return user_cache_path("stonechat", appauthor=False)


def fill_once(folder: Path, progress: Progress, build: Callable[[Path], None]) -> Path:
    """Return `folder`. If it does not exist, `build` fills it first.

    `build` receives an empty folder. If it raises, nothing stays in the cache. Raises
    `ModelLoadError` when the cache cannot be written; an `OSError` from `build` counts as that.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(folder.name + ".lock"), progress):
            if not folder.is_dir():
                _fill(folder, build)
    except OSError as error:
        raise ModelLoadError(
            f"cannot write the cache folder {folder.parent} (check space and permissions): {error}"
        ) from error
    return folder


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"waiting while another process prepares {path.stem}")
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that another process waits for
            path.unlink()
        lock.release()


def _fill(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        build(temporary)
        temporary.chmod(0o755)
        try:
            os.replace(temporary, folder)
        except OSError:
            # A process that waited for a deleted lock may have filled the folder, too.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(paths: Sequence[Path]) -> str:
    """Return a hash of whole files. What was computed is kept until a file changes.

    A file has changed if its place on the disk, its size or its time has.
    """
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        note = cache_root() / "hashes" / "-".join(map(str, numbers))
        digest.update(_kept_hash(path, note).encode())
    return digest.hexdigest()


def _kept_hash(path: Path, note: Path) -> str:
    """Return the hash of a file, which may be noted already."""
    if note.is_file():
        return note.read_text()
    value = file_sha256(path)
    with suppress(OSError):  # it is computed again
        note.parent.mkdir(parents=True, exist_ok=True)
        new = note.with_name(f"{note.name}.{os.getpid()}")
        new.write_text(value)
        os.replace(new, note)
    return value


def sampled_hash(paths: Sequence[Path], header_bytes: Sequence[int] = ()) -> str:
    """Return a hash of large files that reads little of each: its size, its header and samples.

    `header_bytes` are the sizes of the headers, which are read whole; by default `HEADER_BYTES`
    each. The hash does not depend on the files' names, places or times. Two files that differ only
    between the samples have the same hash. So it distinguishes models by their weights, but does
    not detect tampering with them.
    """
    digest = hashlib.sha256()
    for path, header in zip(paths, header_bytes or [HEADER_BYTES] * len(paths), strict=True):
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            digest.update(file.read(header))
            for i in range(1, NUM_SAMPLES + 1):
                file.seek(max(header, (size - SAMPLE_BYTES) * i // NUM_SAMPLES))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
