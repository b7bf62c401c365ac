"""A server process with the scripted engine. Its argument is a folder.

It keeps its files and its database there, and prints its URL once it serves.
"""

import socket
import sys
from pathlib import Path

from stonechat_server.app import create_app
from stonechat_server.observability.ledger import Ledger
from stonechat_server.serving.http_server import serve
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import open_storage
from tests.server.fake_engine import FakeEngine, text_script


def main(folder: Path) -> int:
    database = str(folder / "usage.db")
    settings = Settings(
        ledger=database, files_dir=folder / "files", batch_concurrency=8, shutdown_grace=0
    )
    engine = FakeEngine(text_script("Hello", " there", pause=0.02))
    ledger = Ledger(f"sqlite:///{database}", folder / "journal")
    app = create_app(settings, engine, ledger=ledger, storage=open_storage(settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return serve(app, listener, lambda: print(url, flush=True))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
