"""Files and batches in the tables of a PostgreSQL ledger."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from stonechat_server.errors import APIError
from stonechat_server.observability.ledger import Ledger
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import open_storage
from tests.server.batches_api.batch_files import jsonl, line
from tests.server.bodies import URL
from tests.server.fake_engine import FakeEngine
from tests.server.live import live_server, wait_until
from tests.server.postgresql import needs_postgresql, postgresql


@needs_postgresql
def test_a_batch_runs_and_its_files_are_listed_and_deleted(tmp_path: Path) -> None:
    with postgresql(tmp_path / "postgres") as database:
        check_batch(database, tmp_path)


def check_batch(database: str, folder: Path) -> None:
    settings: dict[str, Any] = {"files_dir": folder / "files", "ledger": database}
    ledger = Ledger(database, folder / "journal")
    storage = open_storage(Settings(**settings))
    assert storage is not None
    with live_server(FakeEngine(), storage=storage, ledger=ledger) as live:
        form = {"purpose": "batch"}
        content = jsonl(line(f"r{i}") for i in range(3))
        url = live.url + "/v1/files"
        first, second = (
            httpx.post(url, data=form, files={"file": ("in", content)}).json() for _ in range(2)
        )
        body: dict[str, Any] = {
            "input_file_id": first["id"],
            "endpoint": URL,
            "completion_window": "24h",
        }
        body["metadata"] = {"a": "b"}
        batch = httpx.post(live.url + "/v1/batches", json=body).json()
        path = f"{live.url}/v1/batches/{batch['id']}"
        wait_until(lambda: httpx.get(path).json()["status"] == "completed")
        done = httpx.get(path).json()
        assert done["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert done["metadata"] == {"a": "b"}
        output = httpx.get(f"{url}/{done['output_file_id']}/content").text
        assert len(output.splitlines()) == 3
        page = httpx.get(url, params={"limit": 1, "order": "asc"}).json()
        assert [file["id"] for file in page["data"]] == [first["id"]]
        assert page["has_more"]
        rest = httpx.get(url, params={"after": first["id"], "order": "asc"}).json()
        assert [file["id"] for file in rest["data"]] == [second["id"], done["output_file_id"]]
        assert httpx.delete(f"{url}/{second['id']}").status_code == 200
        assert httpx.get(f"{url}/{second['id']}").status_code == 404
        assert httpx.get(f"{url}/file-%00").status_code == 404
    again = open_storage(Settings(**settings))
    assert again is not None
    assert again.batches.unfinished() == []
    with pytest.raises(APIError):
        again.files.find("nobody", first["id"])
    again.close()
