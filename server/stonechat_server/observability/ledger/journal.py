"""An append-only journal in front of the database.

`append` hands each line to the operating system before it returns, so a killed process loses none.
Files are rotated: the writer reads whole closed files and deletes each one after its rows are
committed. A live process locks the file that it appends to. An unlocked file is closed, or left
over from a dead process; any writer may take it.
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
        """Lock the file; False if it is locked already."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
else:

    def _lock(descriptor: int) -> bool:
        """Always True: Windows never deletes an open file, so a live process's file is safe."""
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
        """Write one line in a few microseconds, without waiting for the disk. Raises `OSError`."""
        line = self._encoder.encode(entry) + b"\n"
        with self._mutex:
            if self._is_torn:  # a write failed in the middle of the last line
                line = b"\n" + line
            self._is_torn = True
            self._num_lines += 1
            while line:
                line = line[os.write(self._descriptor, line) :]
            self._is_torn = False

    def closed_files(self) -> list[Path]:
        """Close the current file if it has entries, and return all files that are not locked.

        The oldest comes first. They include the leftovers of killed processes.
        """
        with self._mutex:
            if self._num_lines:
                os.close(self._descriptor)
                self._path, self._descriptor = self._open_new()
                self._num_lines = 0
                self._is_torn = False
            current = self._path
        other_paths = (path for path in self._folder.glob("*" + SUFFIX) if path != current)
        return [path for path in sorted(other_paths) if _is_free(path)]

    def close(self) -> None:
        """Close the current file, and delete it if it is empty."""
        with self._mutex:
            os.close(self._descriptor)
            if not self._num_lines:
                self._path.unlink(missing_ok=True)

    def _open_new(self) -> tuple[Path, int]:
        name = f"{uuid.uuid1().time:020d}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        path = self._folder / name
        hidden_path = path.with_suffix(".new")  # other processes ignore it until it is locked
        descriptor = os.open(hidden_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        _lock(descriptor)
        hidden_path.rename(path)
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
    """The entries of a closed file, and the number of its unreadable lines, such as a torn one."""
    decoder = msgspec.json.Decoder(LedgerEntry)
    entries: list[LedgerEntry] = []
    num_unreadable = 0
    for line in filter(None, path.read_bytes().split(b"\n")):
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError:
            num_unreadable += 1
    return entries, num_unreadable
