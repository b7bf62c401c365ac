"""A PostgreSQL server for one test."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import sqlalchemy as sa

from stonechat_server.observability.ledger import open_database

needs_postgresql = pytest.mark.skipif(
    None in (find_spec("psycopg"), shutil.which("initdb"), shutil.which("postgres")),
    reason="needs psycopg and a PostgreSQL server's programs",
)


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Run a server on 127.0.0.1 with its data in `folder`, and give the URL of its database.

    For root it runs as the user `nobody`.
    """
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
        server.send_signal(signal.SIGINT)  # it ends its connections
        server.wait(10)
