import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from stonechat_server.observability.ledger import Ledger, LedgerEntry, open_database, usage
from stonechat_server.observability.ledger.report import delete_before
from stonechat_server.observability.ledger.table import requests

DAY = 86_400


def entry(number: int, **fields: object) -> LedgerEntry:
    values: dict[str, object] = {
        "id": f"id-{number}",
        "created": 1_000.0 * DAY + number,
        "request_id": "same",
        "key": "alice",
        "model": "m",
        "prompt_tokens": 10,
        "completion_tokens": number,
    }
    return LedgerEntry(**{**values, **fields})  # type: ignore[arg-type]


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'usage.db'}"


def ids(url: str) -> list[str]:
    engine = open_database(url)
    with engine.connect() as connection:
        row_ids = list(
            connection.execute(sa.select(requests.c.id).order_by(requests.c.id)).scalars()
        )
    engine.dispose()
    return row_ids


def test_everything_recorded_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=0.01)

    def record(part: int) -> None:
        for number in range(part * 300, part * 300 + 300):
            ledger.record(entry(number))

    threads = [threading.Thread(target=record, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger.close()
    assert sorted(ids(url_of(tmp_path))) == sorted(f"id-{number}" for number in range(1200))
    assert list((tmp_path / "journal").iterdir()) == []


def test_an_unreachable_database_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE requests RENAME TO away"))
    ledger.record(entry(1))
    with pytest.raises(sa.exc.SQLAlchemyError):
        ledger.flush()
    ledger.record(entry(2))
    with ledger._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE away RENAME TO requests"))
    ledger.close()
    assert ids(url_of(tmp_path)) == ["id-1", "id-2"]


KILLED = """
import os, signal, sys
from pathlib import Path
from stonechat_server.observability.ledger import Ledger, LedgerEntry
folder = Path(sys.argv[1])
ledger = Ledger(f"sqlite:///{folder / 'usage.db'}", folder / "journal", flush_seconds=60)
for number in range(50):
    entry = LedgerEntry(id=f"id-{number:02}", created=1.0, request_id="r", key="k", model="m")
    ledger.record(entry)
    if number == 20:
        ledger.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment)
    assert process.returncode == -signal.SIGKILL
    assert len(ids(url_of(tmp_path))) == 21
    for leftover in (tmp_path / "journal").iterdir():
        leftover.write_bytes(leftover.read_bytes() + b'{"id": "torn')
    Ledger(url_of(tmp_path), tmp_path / "journal").close()
    assert ids(url_of(tmp_path)) == [f"id-{number:02}" for number in range(50)]


def test_the_file_of_a_live_process_is_left_alone(tmp_path: Path) -> None:
    first = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    second = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    first.record(entry(1))
    second.flush()
    assert ids(url_of(tmp_path)) == []
    first.record(entry(2))
    first.close()
    second.close()
    assert ids(url_of(tmp_path)) == ["id-1", "id-2"]


def test_usage_by_key_user_and_day(tmp_path: Path) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    ledger.record(entry(1, user="u1", cached_tokens=5))
    ledger.record(entry(2, user="u1", safety_identifier="s1"))
    ledger.record(entry(3, user="u1", created=1_001.0 * DAY))
    ledger.record(entry(4, key="bob", status=504))
    ledger.close()
    engine = open_database(url_of(tmp_path))
    rows = usage(engine)
    assert [row.group for row in rows] == [
        ("alice", "s1", "1972-09-27"),
        ("alice", "u1", "1972-09-27"),
        ("alice", "u1", "1972-09-28"),
        ("bob", "", "1972-09-27"),
    ]
    assert (rows[1].num_requests, rows[1].prompt_tokens, rows[1].cached_tokens) == (1, 10, 5)
    assert (rows[3].num_failed, rows[3].completion_tokens) == (1, 4)
    total = usage(engine, by=())
    assert [(row.group, row.num_requests, row.completion_tokens) for row in total] == [((), 4, 10)]
    assert usage(engine, by=("model",), since=2_000.0 * DAY) == []
    assert [row.group for row in usage(engine, by=("day",), until=1_001.0 * DAY)] == [
        ("1972-09-27",)
    ]
    assert [row.num_requests for row in usage(engine, by=("key",), key="bob")] == [1]
    assert delete_before(engine, 1_001.0 * DAY) == 3
    assert [row.num_requests for row in usage(engine, by=())] == [1]
    engine.dispose()


def test_usage_by_endpoint(tmp_path: Path) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    for number, path in enumerate(("/v1/messages", "/v1/completions", "/v1/messages")):
        ledger.record(entry(number, endpoint=path))
    ledger.close()
    engine = open_database(url_of(tmp_path))
    rows = usage(engine, by=("endpoint", "key"))
    engine.dispose()
    assert [(row.group, row.num_requests, row.completion_tokens) for row in rows] == [
        (("/v1/completions", "alice"), 1, 1),
        (("/v1/messages", "alice"), 2, 2),
    ]


def test_a_refused_row_does_not_block_the_others(tmp_path: Path) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    with ledger._engine.begin() as connection:
        connection.execute(
            sa.text(
                "CREATE TRIGGER picky BEFORE INSERT ON requests WHEN NEW.completion_tokens = 2 "
                "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
            )
        )
    for number in range(5):
        ledger.record(entry(number))
    ledger.close()
    assert ids(url_of(tmp_path)) == ["id-0", "id-1", "id-3", "id-4"]


def test_a_line_cut_by_a_full_disk_costs_that_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(url_of(tmp_path), tmp_path / "journal", flush_seconds=60)
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", broken)
        return write(descriptor, data[:10])

    def broken(descriptor: int, data: bytes) -> int:
        raise OSError("No space left on device")

    ledger.record(entry(1))
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        ledger.record(entry(2))
    monkeypatch.setattr(os, "write", write)
    ledger.record(entry(3))
    ledger.close()
    assert ids(url_of(tmp_path)) == ["id-1", "id-3"]
