"""The page's files over HTTP."""

import hashlib
import logging
import re
from typing import Protocol

import pytest
from fastapi.testclient import TestClient

from stonechat_server.page.routes import STATIC, VENDOR


class NewClient(Protocol):
    def __call__(self, **settings: object) -> TestClient: ...


def test_every_file_is_served_with_the_security_policy(client: TestClient) -> None:
    for path in (path for path in STATIC.rglob("*") if path.is_file()):
        address = f"/page/{path.relative_to(STATIC)}"
        answer = client.get(address)
        assert answer.status_code == 200, address
        assert answer.content == path.read_bytes()
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = client.get(address, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304


def test_the_page_is_at_the_root(client: TestClient) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["nothing.js", "vendor/nothing.js", "..%2froutes.py", "%2e%2e/routes.py"],
)
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_no_file_requests_another_host() -> None:
    for path in STATIC.glob("*.*"):
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        for sign in ('src="http', 'href="http', "@import", "url(http", "innerHTML", "eval("):
            assert sign not in text, f"{path.name}: {sign}"


def test_the_libraries_are_the_releases_that_the_licences_name() -> None:
    text = (VENDOR / "LICENSES.txt").read_text()
    sums = dict(re.findall(r"^(\S+\.js) \S+ \S+ ([0-9a-f]{64})$", text, re.MULTILINE))
    files = {path.name: path.read_bytes() for path in VENDOR.glob("*.js")}
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def test_the_load_needs_the_key(new_client: NewClient) -> None:
    locked = new_client(api_key="sk-1")
    assert locked.get("/").status_code == 200
    assert locked.get("/page/load").status_code == 401
    answer = locked.get("/page/load", headers={"Authorization": "Bearer sk-1"})
    assert answer.json()["num_running"] == 0


def test_polling_the_load_does_not_fill_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("stonechat.access")
    with caplog.at_level(logging.DEBUG, logger=logger.name):
        logger.addHandler(caplog.handler)
        try:
            client.get("/page/load")
            client.get("/")
        finally:
            logger.removeHandler(caplog.handler)
    levels = {
        record.getMessage().split("path=")[1].split()[0]: record.levelno
        for record in caplog.records
    }
    assert levels == {"/page/load": logging.DEBUG, "/": logging.INFO}
