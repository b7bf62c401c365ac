"""Drives the page in a browser as a person does, and waits for what the next step needs.

Nothing here sleeps. A click, a key or an answer of the server may take effect later than the next
line of a test: what a test expects of the page is looked at with `expect`, which waits for it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live
from tests.server.live_server import LiveServer

pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
from playwright.sync_api import Browser, Page, Route, expect

__all__ = ["Browser", "Page", "Route", "expect"]

KEEP_TOASTS = """
const begin = window.setTimeout;
window.setTimeout = (run, ms, ...all) => ms > 5000 ? 0 : begin(run, ms, ...all);
"""
"""Messages of the page stay: a slow test may look for one after its time."""


@contextmanager
def open_tab(
    browser: Browser,
    server: LiveServer | Live,
    path: str = "",
    ready: str = "#send:enabled",
    before: str = "",
    **options: object,
) -> Iterator[Page]:
    """A new tab with a page of the server, once it has an element `ready`.

    The script `before` runs before those of the page. `options` are those of a browser context.
    """
    tab = new_tab(browser, before, **options)
    with no_problems(tab, server):
        load(tab, server, path, ready)
        yield tab
        tab.context.close()


def new_tab(browser: Browser, before: str = "", **options: object) -> Page:
    """An empty tab of a new visitor. See `open_tab`."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    context.add_init_script(KEEP_TOASTS + before)
    return context.new_page()


@contextmanager
def no_problems(tab: Page, server: LiveServer | Live) -> Iterator[None]:
    """Fails if the page logs an error, or requests another host.

    A browser also logs what a Content-Security-Policy stops.
    """
    problems: list[str] = []
    own = (server.url, f"blob:{server.url}", "data:")
    listeners: list[tuple[Any, Any]] = [
        ("pageerror", lambda error: problems.append(str(error))),
        ("console", lambda m: problems.append(m.text) if m.type == "error" else None),
        ("request", lambda r: None if r.url.startswith(own) else problems.append(r.url)),
    ]
    for event, listener in listeners:
        tab.on(event, listener)
    yield
    for event, listener in listeners:
        tab.remove_listener(event, listener)
    assert [one for one in problems if not one.startswith("Failed to load resource")] == []


def load(
    tab: Page, server: LiveServer | Live, path: str = "", ready: str = "#send:enabled"
) -> None:
    """Open a page of the server.

    A wait lasts at most a minute, or as long as this takes 25 times: where that is slow, all is.
    """
    tab.set_default_timeout(120_000)
    began = time.monotonic()
    tab.goto(server.url.rstrip("/") + "/" + path)
    tab.wait_for_selector(ready)
    longest = 1000 * max(60.0, 25 * (time.monotonic() - began))
    tab.set_default_timeout(longest)
    expect.set_options(timeout=longest)


def forget(tab: Page, server: LiveServer) -> None:
    """Leave the page, and delete what it has kept."""
    tab.unroute_all()
    tab.evaluate("sessionStorage.clear()")
    tab.goto("about:blank")
    devtools = tab.context.new_cdp_session(tab)
    kept = {"origin": server.url.rstrip("/"), "storageTypes": "all"}
    devtools.send("Storage.clearDataForOrigin", kept)
    devtools.detach()


def models_known(page: Page) -> None:
    """The page has read the list of models."""
    page.wait_for_selector("#model option:not([value=''])", state="attached")


def ask(page: Page, text: str = "Hi") -> None:
    page.fill("#prompt", text)
    page.keyboard.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    """The page shows so many answers, and none of them runs."""
    expect(page.locator(".turn.assistant")).to_have_count(count)
    expect(page.locator(".turn.assistant.busy")).to_have_count(0)


def answer_is(page: Page, text: str, nth: int = 0) -> None:
    expect(page.locator(".choice .text").nth(nth)).to_have_text(text, use_inner_text=True)


def bubbles_are(page: Page, *texts: str) -> None:
    """The questions on the page."""
    expect(page.locator(".bubble")).to_have_text(list(texts))


def titles_are(page: Page, *titles: str) -> None:
    """The list of conversations."""
    expect(page.locator("#conversations .title")).to_have_text(list(titles))


def press(page: Page, name: str) -> None:
    """The first button of this name."""
    page.get_by_role("button", name=name, exact=True).first.click()


def open_conversation(page: Page, title: str) -> None:
    page.locator("#conversations .title", has_text=title).click()
    page.wait_for_selector(".bubble")


def reopen(page: Page, title: str) -> None:
    """Loads the page again, and opens a conversation."""
    page.reload()
    open_conversation(page, title)


def menu(page: Page, name: str, row: int = 0) -> None:
    """Chooses from the menu of a conversation."""
    page.locator("#conversations .menu > summary").nth(row).click()
    page.locator("#conversations .menu[open]").get_by_role("button", name=name).click()


def delete(page: Page) -> None:
    """Deletes the first conversation."""
    menu(page, "Delete")
    page.wait_for_selector("text=Deleted")


def download(page: Page, name: str, folder: Path) -> Path:
    with page.expect_download() as pending:
        menu(page, name)
    target = folder / pending.value.suggested_filename
    pending.value.save_as(target)
    return target


def settings(page: Page, tab: str = "") -> None:
    """Shows the settings, with all fields."""
    page.click("#toggle-panel")
    if tab:
        page.click(f"#tab-{tab}")
    else:
        page.click("#more-fields summary")


def copy_as(page: Page) -> None:
    page.click("#more summary")
    page.click("#copy-as")


def stream_of(page: Page, *answers: list[object], end: str = "data: [DONE]\n\n") -> list[Any]:
    """Answers chat requests with these events, the last ones again and again.

    Returns the list of the requests' bodies, which grows.
    """
    bodies: list[Any] = []

    def answer(route: Route) -> None:
        events = answers[min(len(bodies), len(answers) - 1)]
        bodies.append(route.request.post_data_json)
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        route.fulfill(body=text + end, content_type="text/event-stream")

    page.route("**/v1/chat/completions", answer)
    return bodies


def piece(finish: str | None = None, **delta: object) -> dict[str, object]:
    """An event with a part of an answer."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
