"""The ledger's thread: retries, their pauses, and what it says in the log."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from stonechat_server.observability.ledger import Ledger, LedgerEntry, open_database
from stonechat_server.observability.ledger.table import requests
from stonechat_server.observability.ledger.writer import MAX_BACKOFF_SECONDS, LedgerError

LOGGER = "stonechat.ledger"


def entry(number: int) -> LedgerEntry:
    return LedgerEntry(
        id=f"id-{number}",
        created=float(number),
        request_id="same",
        key="alice",
        model="m",
        prompt_tokens=1,
        completion_tokens=1,
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'usage.db'}"


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Ledger:
    """A ledger whose thread has ended, so that only the test flushes."""
    ledger = Ledger(url, tmp_path / "journal")
    ledger._stopping.set()
    ledger._thread.join()
    return ledger


def rename(url: str, old: str, new: str) -> None:
    engine = open_database(url) if old == "requests" else sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))
    engine.dispose()


def ids(url: str) -> list[str]:
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        found = list(connection.execute(sa.select(requests.c.id)).scalars())
    engine.dispose()
    return sorted(found)


@pytest.mark.parametrize("url", ["no url", "sqlite:////dev/null/usage.db", "unknown://x"])
def test_a_database_that_cannot_be_opened_is_named(url: str, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="see --ledger"):
        Ledger(url, tmp_path / "journal")


def test_a_journal_that_cannot_be_opened_is_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="see --ledger"):
        Ledger(url, tmp_path / "file" / "journal")


def test_failures_are_logged_once_and_so_is_their_end(
    ledger: Ledger, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    ledger.record(entry(1))
    rename(url, "requests", "away")
    for _ in range(3):
        ledger._try_flush()
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "entries stay in the journal" in caplog.text
    rename(url, "away", "requests")
    ledger._try_flush()
    ledger._try_flush()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "works again" in caplog.text
    assert ids(url) == ["id-1"]
    ledger.close()


def test_pauses_double_up_to_a_bound(ledger: Ledger, url: str) -> None:
    ledger.record(entry(1))
    rename(url, "requests", "away")
    pauses = [ledger._pause()]
    for _ in range(40):
        ledger._try_flush()
        pauses.append(ledger._pause())
    assert pauses[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert set(pauses[5:]) == {MAX_BACKOFF_SECONDS}
    rename(url, "away", "requests")
    ledger._try_flush()
    assert ledger._pause() == 1.0
    ledger.close()


def test_lines_that_cannot_be_read_are_reported_and_the_others_kept(
    ledger: Ledger, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.record(entry(1))
    (path,) = (tmp_path / "journal").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"id": "torn\n')
    ledger.record(entry(2))
    ledger.flush()
    assert ids(url) == ["id-1", "id-2"]
    assert "1 unreadable lines" in caplog.text
    ledger.close()


def refuse(*refused: str) -> Callable[..., None]:
    """Return a listener that makes the database refuse rows of these ids."""

    def before(connection: object, cursor: object, statement: str, values: object, *_: object):
        text = repr(values)
        if statement.startswith("INSERT") and any(row in text for row in refused):
            raise sa.exc.DataError("insert", None, ValueError("too large"))

    return before


def test_a_row_that_the_database_refuses_does_not_take_others_with_it(
    ledger: Ledger, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        ledger.record(entry(number))
    sa.event.listen(ledger._engine, "before_cursor_execute", refuse("id-3"))
    ledger.flush()
    assert ids(url) == ["id-0", "id-1", "id-2", "id-4"]
    assert "refused entry id-3, which is lost: too large" in caplog.text
    ledger.close()
