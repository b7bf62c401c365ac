"""`/v1/files` with a real client's requests, and against the published schema."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from stonechat_server.access.keys_file import add_key
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from stonechat_server.storage.storage import open_storage
from tests.openai_schema import validate
from tests.server.bodies import error_of
from tests.server.fake_engine import FakeEngine
from tests.server.live import live_server, wait_until
from tests.server.storing import NewServer, storage_of, upload

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several writes


def contents(folder: Path) -> list[str]:
    """What lies in the folder beside the database."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("files.db"))


@pytest.fixture
def client(server: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="any", http_client=server, max_retries=0
    )


def test_a_file_comes_back_as_it_was(
    server: TestClient, client: openai.OpenAI, tmp_path: Path
) -> None:
    file = client.files.create(
        file=("in/my lines.jsonl", CONTENT),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (file.bytes, file.filename, file.purpose) == (len(CONTENT), "my lines.jsonl", "batch")
    assert file.expires_at == file.created_at + 3600
    assert client.files.content(file.id).read() == CONTENT
    assert client.files.retrieve(file.id) == file
    validate("OpenAIFile", server.get(f"/v1/files/{file.id}").json())
    validate("ListFilesResponse", server.get("/v1/files").json())
    assert contents(tmp_path / "files") == [file.id]
    content = (tmp_path / "files" / file.id).rename(tmp_path / "gone")  # as in a deletion
    assert server.get(f"/v1/files/{file.id}/content").json()["error"]["code"] == "file_not_found"
    content.rename(tmp_path / "files" / file.id)
    deleted = server.delete(f"/v1/files/{file.id}").json()
    validate("DeleteFileResponse", deleted)
    assert deleted["deleted"]
    assert contents(tmp_path / "files") == []
    validate("ListFilesResponse", server.get("/v1/files").json())
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_the_list_has_pages_an_order_and_a_purpose(
    server: TestClient, client: openai.OpenAI
) -> None:
    ids = [upload(server)["id"] for _ in range(5)]
    assert [file.id for file in client.files.list(limit=2)] == ids[::-1]  # reads all pages
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    page = server.get("/v1/files", params={"after": ids[2], "limit": 1}).json()
    assert (page["data"][0]["id"], page["first_id"], page["has_more"]) == (ids[1], ids[1], True)
    assert list(client.files.list(purpose="batch_output")) == []
    for wrong in ({"limit": "0"}, {"limit": "x"}, {"order": "up"}):
        assert server.get("/v1/files", params=wrong).status_code == 400
    assert server.get("/v1/files", params={"after": "file-none"}).status_code == 404


def test_files_belong_to_a_key(new_server: NewServer, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    alice, bob = ({"authorization": f"Bearer {add_key(keys, name)}"} for name in ("alice", "bob"))
    server = new_server(keys_file=keys)
    file = server.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"1")}, headers=alice
    ).json()
    path = f"/v1/files/{file['id']}"
    assert server.get("/v1/files", headers=bob).json()["data"] == []
    for answer in (
        server.get(path, headers=bob),
        server.get(path + "/content", headers=bob),
        server.delete(path, headers=bob),
        server.get("/v1/files", params={"after": file["id"]}, headers=bob),
    ):
        assert error_of(answer)["code"] == "file_not_found"
        assert answer.status_code == 404
    assert server.get(path).status_code == 401
    assert server.get(path + "/content", headers=alice).content == b"1"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"purpose": "batch", "shape": "round"}, "shape"),
        ({"purpose": "batch", "shapes[]": "round"}, "shapes[]"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        (
            {
                "purpose": "batch",
                "expires_after[anchor]": "created_at",
                "expires_after[seconds]": "60",
            },
            "expires_after.seconds",
        ),
        ({}, "purpose"),
    ],
)
def test_wrong_fields_are_named(
    server: TestClient, tmp_path: Path, fields: dict[str, str], param: str
) -> None:
    answer = server.post("/v1/files", data=fields, files={"file": ("a", b"1")})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param
    assert contents(tmp_path / "files") == []


HEAD = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--B--\r\n"),
        ("multipart/form-data; boundary=" + "B" * 300, HEAD),
        ("multipart/form-data; boundary=B", b"--C\r\n"),
        ("multipart/form-data; boundary=B", b"--B--\r\n"),
        ("multipart/form-data; boundary=B", HEAD + b"the end is missing"),
        ("multipart/form-data; boundary=B", HEAD + b"1\r\n" + HEAD + b"2\r\n--B--\r\n"),
        ("multipart/form-data; boundary=B", HEAD.replace(b'"a"', b'""') + b"1\r\n--B--\r\n"),
        (
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
            + b"x" * 5000
            + b"\r\n--B--\r\n",
        ),
        ("multipart/form-data; boundary=B", b"--B\r\n" + b"X: y\r\n" * 5000 + b"\r\n"),
    ],
)
def test_a_form_that_is_not_well_made_is_a_400(
    server: TestClient, tmp_path: Path, kind: str, body: bytes
) -> None:
    answer = server.post("/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    error_of(answer)
    assert contents(tmp_path / "files") == []


def test_limits_on_a_file_and_on_a_key(new_server: NewServer, tmp_path: Path) -> None:
    server = new_server(max_file_size=1000, files_per_key=3, file_space_per_key=1500)
    form: dict[str, Any] = {"data": {"purpose": "batch"}}
    answer = server.post("/v1/files", **form, files={"file": ("a", b"x" * 1001)})
    assert (answer.status_code, error_of(answer)["code"]) == (413, "file_too_large")
    first = upload(server, b"x" * 1000)["id"]
    answer = server.post("/v1/files", **form, files={"file": ("a", b"x" * 501)})
    assert answer.status_code == 413
    upload(server, b"x" * 500)
    answer = server.post("/v1/files", **form, files={"file": ("a", b"")})
    assert (answer.status_code, error_of(answer)["code"]) == (403, "file_quota_exceeded")
    server.delete(f"/v1/files/{first}")
    upload(server)
    upload(server)
    answer = server.post("/v1/files", **form, files={"file": ("a", b"")})
    assert answer.status_code == 403
    assert len(contents(tmp_path / "files")) == 3


def test_a_declared_size_is_refused_before_it_is_sent(new_server: NewServer) -> None:
    server = new_server(max_file_size=1000)
    pulled = 0

    def pieces() -> Iterator[bytes]:
        nonlocal pulled
        for _ in range(100):
            pulled += 1
            yield b"x" * 2000

    head = {"content-type": "multipart/form-data; boundary=B", "content-length": "200000"}
    answer = server.post("/v1/files", content=pieces(), headers=head)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


def test_an_upload_that_breaks_off_or_is_slow_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    settings: dict[str, Any] = {"files_dir": folder, "ledger": "off", "body_timeout": 0.3}
    storage = open_storage(Settings(**settings))
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
        b"Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    )
    with live_server(FakeEngine(), storage=storage, **settings) as live:
        for waits in (True, False):
            with socket.create_connection(("127.0.0.1", live.port)) as client:
                client.settimeout(60)
                client.sendall(head + HEAD + b"begin")
                if waits:
                    assert client.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert storage is not None
        wait_until(lambda: not +storage.num_uploads)
        assert contents(folder) == []


def test_expired_files_are_gone_and_swept(server: TestClient, tmp_path: Path) -> None:
    file = upload(server)
    store = storage_of(server).files
    clock = store.clock
    store.clock = lambda: clock() + 30 * 86_400 + 1
    assert server.get(f"/v1/files/{file['id']}").status_code == 404
    assert server.get("/v1/files").json()["data"] == []
    leftover = store.new_upload()
    leftover.write_bytes(b"half")
    assert store.sweep() == 1
    assert contents(tmp_path / "files") == []


def test_a_file_whose_content_is_gone_is_not_kept(server: TestClient) -> None:
    store = storage_of(server).files
    known = store.find("anonymous", upload(server)["id"])
    lost = replace(known, id="file-lost")
    with pytest.raises(FileNotFoundError):
        store.keep(store.new_upload(), lost)
    assert server.get("/v1/files/file-lost").status_code == 404


def test_what_another_server_removes_does_not_stop_a_sweep(server: TestClient) -> None:
    store = storage_of(server).files
    gone, old = store.folder / "upload-0", store.folder / "upload-1"
    gone.symlink_to("nothing")
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    store.sweep()
    assert not old.exists()


def test_files_outlive_the_server(new_server: NewServer) -> None:
    file = upload(new_server(), b"kept")
    again = new_server()
    assert again.get(f"/v1/files/{file['id']}/content").content == b"kept"


def test_without_a_storage_the_answer_says_so(engine: FakeEngine) -> None:
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        for method, path in (("GET", "/v1/files"), ("POST", "/v1/files"), ("GET", "/files/x")):
            answer = client.request(method, path)
            assert answer.status_code == 404
            assert error_of(answer)["code"] == "files_off"
            assert "--files-dir" in error_of(answer)["message"]
