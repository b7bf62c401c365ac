"""An append-only journal in front of the database.

A line is handed to the operating system before `append` returns, so a killed process loses none.
Files are rotated: the writer takes whole closed files and deletes each when its rows are committed.
A live process holds a lock on the file it appends to; other files are leftovers, free to take.
"""

import os
import threading
import uuid
from pathlib import Path

import msgspec

from stonechat_server.observability.ledger.entry import LedgerEntry

if os.name == "posix":
    import fcntl

    def _lock(descriptor: int) -> bool:
        """Whether nobody else holds the file."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
else:

    def _lock(descriptor: int) -> bool:
        """Open files cannot be deleted on Windows, which keeps a live process's file safe."""
        return True


SUFFIX = ".jsonl"


class Journal:
    """A folder of journal files, one of which is open for appending."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._encoder = msgspec.json.Encoder()
        self._path, self._descriptor = self._open_new()
        self._num_lines = 0
        self._is_torn = False

    def append(self, entry: LedgerEntry) -> None:
        """Write one line; a few microseconds, no waiting for the disk. Raises `OSError`."""
        line = self._encoder.encode(entry) + b"\n"
        with self._mutex:
            if self._is_torn:  # a full disk has cut the last line
                line = b"\n" + line
            self._is_torn = True
            self._num_lines += 1
            while line:
                line = line[os.write(self._descriptor, line) :]
            self._is_torn = False

    def closed_files(self) -> list[Path]:
        """Close the current file if it holds anything, and give every file free to be taken.

        Leftovers of processes that were killed are among them, oldest first.
        """
        with self._mutex:
            if self._num_lines:
                os.close(self._descriptor)
                self._path, self._descriptor = self._open_new()
                self._num_lines = 0
                self._is_torn = False
            current = self._path
        others = (path for path in self._folder.glob("*" + SUFFIX) if path != current)
        return [path for path in sorted(others) if _is_free(path)]

    def close(self) -> None:
        """Close the current file, and delete it if it is empty."""
        with self._mutex:
            os.close(self._descriptor)
            if not self._num_lines:
                self._path.unlink(missing_ok=True)

    def _open_new(self) -> tuple[Path, int]:
        name = f"{uuid.uuid1().time:020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        path = self._folder / name
        unlocked = path.with_suffix(".new")  # not seen by others until it is locked
        descriptor = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        _lock(descriptor)
        unlocked.rename(path)
        return path, descriptor


def _is_free(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> tuple[list[LedgerEntry], int]:
    """The entries of a closed file, and how many lines could not be read (a torn last one)."""
    decoder = msgspec.json.Decoder(LedgerEntry)
    entries: list[LedgerEntry] = []
    num_unreadable = 0
    for line in filter(None, path.read_bytes().split(b"\n")):
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError:
            num_unreadable += 1
    return entries, num_unreadable
