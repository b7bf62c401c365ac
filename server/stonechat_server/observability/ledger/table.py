"""The ledger's table, and connections to SQLite (default) or PostgreSQL."""

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

metadata = sa.MetaData()

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("request_id", sa.String(128), nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("user", sa.Text),
    sa.Column("safety_identifier", sa.Text),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("error_code", sa.Text),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("num_choices", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("finish_reasons", sa.Text, nullable=False),
    sa.Column("queue_seconds", sa.Double),
    sa.Column("first_token_seconds", sa.Double),
    sa.Column("total_seconds", sa.Double, nullable=False),
    sa.Column("prompt", sa.Text),
    sa.Column("completion", sa.Text),
)


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
