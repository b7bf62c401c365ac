"""The API's docs in a real browser."""

import json
import re
from contextlib import AbstractContextManager
from urllib.parse import urljoin
from urllib.request import urlopen

import pytest
from fastapi.testclient import TestClient

from stonechat_server.page.routes import DOCS
from tests.server.live_server import LiveServer

from .conftest import KEY
from .driver import Browser, Page, expect, open_tab


def docs_of(browser: Browser, server: LiveServer) -> AbstractContextManager[Page]:
    """A new tab with the docs."""
    return open_tab(browser, server, "docs", ready=".opblock")


def operations(server: LiveServer) -> set[tuple[str, str]]:
    with urlopen(server.url + "openapi.json") as answer:
        paths = json.load(answer)["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def execute(page: Page, operation_id: str) -> tuple[str, str]:
    """Run an operation with the values that the page proposes. Returns status and body."""
    block = page.locator(f"[id$='-{operation_id}']")
    block.locator(".opblock-summary").click()
    block.get_by_role("button", name="Execute").click()
    row = block.locator(".live-responses-table tr.response")
    return row.locator(".response-col_status").inner_text(), row.locator("pre").first.inner_text()


@pytest.mark.nightly
def test_every_operation_is_listed_and_opens(browser: Browser, open_server: LiveServer) -> None:
    with docs_of(browser, open_server) as page:
        listed = operations(open_server)
        expect(page.locator(".opblock")).to_have_count(len(listed))
        summaries = [text.split("\n")[:2] for text in page.locator(".opblock").all_inner_texts()]
        shown = {(method, path.replace("\u200b", "")) for method, path in summaries}
        assert shown == listed
        page.locator(".opblock-post .opblock-summary").first.click()
        page.wait_for_selector(".opblock-post .body-param textarea")


def test_operations_can_be_tried_as_proposed(browser: Browser, open_server: LiveServer) -> None:
    with docs_of(browser, open_server) as page:
        status, body = execute(page, "health")
        assert status.split()[0] == "200"
        assert json.loads(body) == {"status": "ok"}
        status, body = execute(page, "createChatCompletion")
        assert status.split()[0] == "200"
        assert json.loads(body)["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.nightly
def test_a_key_can_be_given(browser: Browser, locked_server: LiveServer) -> None:
    with docs_of(browser, locked_server) as page:
        page.locator(".scheme-container .authorize").click()
        page.locator(".auth-container input").first.fill(KEY)
        page.locator(".auth-container").first.get_by_role("button", name="Apply").click()
        page.locator(".btn-done").first.click()
        status, body = execute(page, "listModels")
        assert status.split()[0] == "200"
        assert json.loads(body)["data"][0]["id"] == "tiny-test"


def test_every_file_is_served_with_a_security_policy(client: TestClient) -> None:
    for path in DOCS.iterdir():
        answer = client.get(f"/docs/{path.name}")
        assert answer.content == path.read_bytes(), path
        assert answer.headers["etag"]
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy


def test_the_docs_need_no_key_and_no_other_file_is_served(client: TestClient) -> None:
    assert client.get("/docs").content == (DOCS / "index.html").read_bytes()
    assert client.get("/docs/nothing.js").status_code == 404


@pytest.mark.parametrize(
    ("path", "leads_to"),
    [
        ("/docs/", "/docs"),
        ("/docs/index.html", "/docs"),
        ("/page/", "/"),
        ("/page/index.html", "/"),
    ],
)
def test_a_page_has_one_address(client: TestClient, path: str, leads_to: str) -> None:
    """The addresses in a page are relative: below another one they would lead nowhere."""
    answer = client.get(path)
    assert [step.status_code for step in answer.history] == [307]
    assert not answer.history[0].headers["location"].startswith("/")  # a proxy may add a prefix
    assert answer.url.path == leads_to
    linked = re.findall(r'(?:src|href)="(?!#)([^"]+)"', answer.text)
    assert len(linked) > 3
    for link in linked:
        assert client.get(urljoin(str(answer.url), link)).status_code == 200, link


def test_the_page_leads_to_the_docs(browser: Browser, open_server: LiveServer) -> None:
    with open_tab(browser, open_server) as page:
        page.click("#more summary")
        page.get_by_role("link", name="API").click()
        page.wait_for_selector(".opblock")
        assert page.url == open_server.url + "docs"


def test_the_licence_comes_with_the_files() -> None:
    assert "Apache License" in (DOCS / "LICENSE.txt").read_text()
    assert "SmartBear" in (DOCS / "NOTICE.txt").read_text()
    assert "LICENSE.txt" in (DOCS / "index.html").read_text()
