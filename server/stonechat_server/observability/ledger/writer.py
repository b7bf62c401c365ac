"""Moves entries from the journal into the database, on a thread of its own."""

import logging
import threading
from pathlib import Path

import msgspec
import sqlalchemy as sa

from stonechat_server.observability.ledger.entry import LedgerEntry
from stonechat_server.observability.ledger.journal import Journal, read_file
from stonechat_server.observability.ledger.table import insert_new, open_database, plain_reason
from stonechat_server.options import UserError

MAX_BACKOFF_SECONDS = 30.0
ROWS_AT_ONCE = 500

logger = logging.getLogger("stonechat.ledger")


class LedgerError(UserError):
    """The ledger cannot be opened; the message says why."""


class Ledger:
    """Records requests. `record` only appends to the journal; a thread inserts the rows in batches.

    While the database is unreachable the journal grows, and its rows are inserted later. The id of
    a row makes sure that it is inserted once, however often the writer retries. Thread-safe.
    """

    def __init__(self, url: str, journal_folder: Path, flush_seconds: float = 1.0) -> None:
        """Raises `LedgerError` when the database or the folder cannot be opened."""
        try:
            self._engine = open_database(url)
            self._insert = insert_new(self._engine)
            self._journal = Journal(journal_folder)
        except (sa.exc.SQLAlchemyError, ImportError, OSError, ValueError) as error:
            reason = plain_reason(error)
            raise LedgerError(f"cannot open the usage ledger (see --ledger): {reason}") from error
        self._flush_seconds = flush_seconds
        self._stopping = threading.Event()
        self._flush_mutex = threading.Lock()
        self._num_failures = 0
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def record(self, entry: LedgerEntry) -> None:
        """Append an entry to the journal; from then on it survives the death of the process."""
        self._journal.append(entry)

    def flush(self) -> None:
        """Write all recorded entries to the database. Raises `sqlalchemy.exc.SQLAlchemyError`."""
        with self._flush_mutex:
            for path in self._journal.closed_files():
                entries, num_unreadable = read_file(path)
                if num_unreadable:
                    logger.error("%d unreadable lines in %s", num_unreadable, path)
                self._insert_all(entries)
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Flush and stop the thread. Entries that cannot be written stay in the journal."""
        self._stopping.set()
        self._thread.join()
        self._try_flush()
        self._journal.close()
        self._engine.dispose()

    def _insert_all(self, entries: list[LedgerEntry]) -> None:
        rows = [msgspec.structs.asdict(entry) for entry in entries]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._insert_rows(rows[start : start + ROWS_AT_ONCE])

    def _insert_rows(self, rows: list[dict[str, object]]) -> None:
        """Insert in one transaction, or row by row if the database refuses one of the rows."""
        try:
            with self._engine.begin() as connection:
                connection.execute(self._insert, rows)
        except (sa.exc.DataError, sa.exc.IntegrityError) as error:
            if len(rows) == 1:
                logger.error(
                    "the database refused entry %s, which is lost: %s", rows[0]["id"], error.orig
                )
                return
            for row in rows:
                self._insert_rows([row])

    def _run(self) -> None:
        while not self._stopping.wait(self._pause()):
            self._try_flush()

    def _pause(self) -> float:
        return min(self._flush_seconds * 2.0**self._num_failures, MAX_BACKOFF_SECONDS)

    def _try_flush(self) -> None:
        try:
            self.flush()
        except (sa.exc.SQLAlchemyError, OSError) as error:
            if not self._num_failures:
                logger.error(
                    "cannot write to the ledger's database; entries stay in the journal: %s", error
                )
            self._num_failures = min(self._num_failures + 1, 16)
        else:
            if self._num_failures:
                logger.info("writing to the ledger's database works again")
            self._num_failures = 0
