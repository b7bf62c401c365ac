"""The ledger's table, and connections to SQLite (default) or PostgreSQL."""

from collections.abc import Collection
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from stonechat_server.observability.ledger.entry import LedgerEntry

COLUMN_TYPES = {str: sa.Text, int: sa.BigInteger, float: sa.Double, bool: sa.Boolean}


def table_of(
    record: type, name: str, metadata: sa.MetaData, *more: sa.Column[Any], indexed: Collection[str]
) -> sa.Table:
    """A table with a column for each field of a record, and `more`. The key is `id`.

    A column may be null if the type of its field has None.
    """
    columns: list[sa.Column[Any]] = []
    for field, hint in get_type_hints(record).items():
        kinds = get_args(hint) or (hint,)
        column: sa.Column[Any] = sa.Column(
            field,
            COLUMN_TYPES[kinds[0]],
            primary_key=field == "id",
            nullable=NoneType in kinds,
            index=field in indexed,
        )
        columns.append(column)
    return sa.Table(name, metadata, *columns, *more)


metadata = sa.MetaData()
requests = table_of(LedgerEntry, "requests", metadata, indexed={"created"})


def open_database(url: str, tables: sa.MetaData = metadata) -> sa.Engine:
    """Connect to a SQLAlchemy URL and create the tables that are missing.

    SQLite runs in WAL mode, so that reports can be read while the server writes.
    """
    parsed_url = sa.make_url(url)
    if parsed_url.get_backend_name() == "sqlite":
        if parsed_url.database:
            Path(parsed_url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed_url)
        sa.event.listen(engine, "connect", _use_wal)
    else:
        engine = sa.create_engine(parsed_url, pool_pre_ping=True)
    tables.create_all(engine)
    return engine


def plain_reason(error: Exception) -> str:
    """Why a database or its folder cannot be opened, in one line."""
    if isinstance(error, sa.exc.DBAPIError):  # without the statement and the link
        error = error.orig if isinstance(error.orig, Exception) else error
    if isinstance(error, sa.exc.ArgumentError | sa.exc.NoSuchModuleError):
        return "it is neither a path nor the URL of a database that is known here"
    if isinstance(error, ModuleNotFoundError):
        return f"the driver of its database is not installed ({error})"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, not a folder"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return str(error).strip().splitlines()[0]


def _use_wal(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


def insert_new(engine: sa.Engine) -> sa.Insert:
    """An INSERT that skips rows whose id is in the table already.

    Raises `ValueError` if the database is neither SQLite nor PostgreSQL.
    """
    if engine.dialect.name == "postgresql":
        return postgresql.insert(requests).on_conflict_do_nothing()
    if engine.dialect.name == "sqlite":
        return sqlite.insert(requests).on_conflict_do_nothing()
    raise ValueError(f"the ledger needs sqlite or postgresql, not {engine.dialect.name}")
