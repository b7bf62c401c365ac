from pathlib import Path

from stonechat_server.observability.ledger import Ledger, LedgerEntry, open_database, usage
from tests.server.postgresql import needs_postgresql, postgresql


@needs_postgresql
def test_ledger_in_postgresql(tmp_path: Path) -> None:
    with postgresql(tmp_path / "postgres") as database:
        check_ledger(database, tmp_path / "journal")


def check_ledger(database: str, journal: Path) -> None:
    ledger = Ledger(database, journal, flush_seconds=0.05)
    for number in range(20):
        user = f"u{number % 2}"
        ledger.record(
            LedgerEntry(
                id=str(number), created=86_400.0, request_id="r", key="k", model="m", user=user
            )
        )
    ledger.close()
    assert list(journal.iterdir()) == []
    again = Ledger(database, journal)
    again.record(LedgerEntry(id="3", created=86_400.0, request_id="r", key="k", model="m"))
    again.close()
    engine = open_database(database)
    assert [(row.group, row.num_requests) for row in usage(engine, by=("user", "day"))] == [
        (("u0", "1970-01-02"), 10),
        (("u1", "1970-01-02"), 10),
    ]
    engine.dispose()
