import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from stonechat_server.observability.ledger import Ledger, LedgerEntry, open_database, usage

pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(
    shutil.which("initdb") is None or shutil.which("postgres") is None,
    reason="needs a PostgreSQL server's programs",
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[str]:
    """A PostgreSQL server for one test, on 127.0.0.1. For root it runs as the user `nobody`."""
    folder = tmp_path / "postgres"
    folder.mkdir()
    user = "nobody" if os.name == "posix" and os.getuid() == 0 else None
    if user:
        for parent in [folder, *folder.parents]:
            if parent.owner() == "root" and parent not in (Path("/"), Path("/tmp")):
                shutil.chown(parent, user) if parent == folder else parent.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    initialise = ["initdb", "-D", data, "-U", "stonechat", "--auth=trust", "--no-sync"]
    subprocess.run(initialise, user=user, check=True, stdout=subprocess.DEVNULL, cwd="/")
    command = ["postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
    server = subprocess.Popen(command, user=user, stderr=subprocess.DEVNULL, cwd="/")
    try:
        url = f"postgresql+psycopg://stonechat@127.0.0.1:{port}/postgres"
        for _ in range(100):
            try:
                open_database(url).dispose()
                break
            except sa.exc.OperationalError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(10)


def test_ledger_in_postgresql(database: str, tmp_path: Path) -> None:
    ledger = Ledger(database, tmp_path / "journal", flush_seconds=0.05)
    for number in range(20):
        user = f"u{number % 2}"
        ledger.record(
            LedgerEntry(
                id=str(number), created=86_400.0, request_id="r", key="k", model="m", user=user
            )
        )
    ledger.close()
    assert list((tmp_path / "journal").iterdir()) == []
    again = Ledger(database, tmp_path / "journal")
    again.record(LedgerEntry(id="3", created=86_400.0, request_id="r", key="k", model="m"))
    again.close()
    engine = open_database(database)
    assert [(row.group, row.num_requests) for row in usage(engine, by=("user", "day"))] == [
        (("u0", "1970-01-02"), 10),
        (("u1", "1970-01-02"), 10),
    ]
    engine.dispose()
