"""Opens files and batches, and runs what blocks on them in a thread of its own."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import platformdirs
import sqlalchemy as sa

from stonechat_server.observability.ledger.location import ledger_place
from stonechat_server.observability.ledger.table import open_database, plain_reason
from stonechat_server.options import UserError
from stonechat_server.settings import Settings
from stonechat_server.storage.batches import BatchStore
from stonechat_server.storage.files import FileLimits, FileStore
from stonechat_server.storage.tables import metadata

T = TypeVar("T")
OFF = "off"


class StorageError(UserError):
    """Files cannot be kept; the message says why."""


class Storage:
    """The files and batches of one server."""

    def __init__(
        self, url: str, folder: Path, limits: FileLimits, max_unfinished_batches: int
    ) -> None:
        """Raises `StorageError` if the database or the folder cannot be opened."""
        try:
            self._engine = open_database(url, metadata)
            self.files = FileStore(self._engine, folder, limits)
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
            raise StorageError(f"no files are kept: {plain_reason(error)}") from error
        self.batches = BatchStore(self._engine, max_unfinished_batches)
        self.num_uploads: Counter[str] = Counter()
        """The uploads of each owner that are on their way."""
        self._thread = ThreadPoolExecutor(1, "storage")

    async def run(self, work: Callable[..., T], *args: object, **named: object) -> T:
        """Call `work` in the thread of the storage, one after the other."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*args, **named))

    def close(self) -> None:
        """Wait for the thread (blocking)."""
        self._thread.shutdown()
        self._engine.dispose()


def open_storage(settings: Settings) -> Storage | None:
    """The storage that the settings name; None if it is off. Raises `StorageError`.

    Its tables are in the ledger's database. If the ledger is off, they are in a SQLite file in the
    folder of the files.
    """
    if settings.files_dir is not None and str(settings.files_dir) == OFF:
        return None
    folder = settings.files_dir or platformdirs.user_data_path("stonechat") / "files"
    folder = folder.expanduser().absolute()
    place = ledger_place(settings.ledger)
    url = f"sqlite:///{folder / 'files.db'}" if place is None else place.url
    limits = FileLimits(
        max_file_bytes=settings.max_file_size,
        max_files=settings.files_per_key,
        max_bytes=settings.file_space_per_key,
    )
    return Storage(url, folder, limits, settings.batches_per_key)
