"""A real server with a scripted engine, and a headless Chromium to open its page."""

import math
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from stonechat_models import FinishReason, GenerateRequest, LogprobEntry, RequestOutput, TopLogprob
from stonechat_server.settings import Settings
from tests.server.fake_engine import Script, delta, output
from tests.server.live import wait_until
from tests.server.live_server import LiveServer, live_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KEY = "sk-page-test"


def entry(text: str, probability: float, *others: tuple[str, float]) -> LogprobEntry:
    chosen = TopLogprob(0, text, text.encode(), math.log(probability))
    alternatives = [TopLogprob(1, t, t.encode(), math.log(p)) for t, p in others]
    top = tuple(sorted([chosen, *alternatives], key=lambda alternative: -alternative.logprob))
    return LogprobEntry(0, text, text.encode(), math.log(probability), top)


def script(*pieces: str) -> Script:
    """Each choice gets one piece with log-probabilities per step, the last one with `stop`."""

    def play(request: GenerateRequest) -> list[RequestOutput | Exception | float]:
        items: list[RequestOutput | Exception | float] = []
        for step, piece in enumerate(pieces):
            last = step == len(pieces) - 1
            entries = (entry(piece, 1 / (step + 1.25), (" other", 0.02), ("\n", 0.01)),)
            logprobs = None if request.params.top_logprobs is None else entries
            deltas = [
                delta(piece, index, FinishReason.STOP if last else None, logprobs=logprobs)
                for index in range(request.params.n)
            ]
            items.append(output(request, *deltas, finished=last, cached=3))
        return items

    return play


def endless(piece: str = "word ", is_over: Callable[[], bool] = lambda: False) -> Script:
    """The piece again and again, until the client goes or it `is_over`."""

    def play(request: GenerateRequest) -> Iterator[RequestOutput | Exception | float]:
        while not is_over():
            yield output(request, delta(piece))
            yield 0.05
        yield output(request, delta(finish=FinishReason.STOP), finished=True)

    return play


@pytest.fixture(scope="module")
def open_server() -> Iterator[LiveServer]:
    with live_server(Settings()) as server:
        yield server


@pytest.fixture(scope="module")
def locked_server() -> Iterator[LiveServer]:
    with live_server(Settings(api_key=KEY)) as server:
        yield server


@pytest.fixture(scope="module")  # its event loop may not outlive the tests of the page
def browser() -> "Iterator[Browser]":
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=path,
                # Without either rasterizer there is no process for a GPU.
                args=["--no-sandbox", "--disable-gpu", "--disable-software-rasterizer"],
            )
        except sync_api.Error as error:
            pytest.skip(f"no Chromium to run: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser: "Browser") -> "Page":
    """A tab that many tests use, one after the other. Its process knows the page's code."""
    from .driver import new_tab

    return new_tab(browser, viewport={"width": 1200, "height": 800})


@pytest.fixture
def page(tab: "Page", open_server: LiveServer) -> "Iterator[Page]":
    """The page as a new visitor finds it. The models are known."""
    from .driver import forget, load, models_known, no_problems

    engine = open_server.engine
    engine.script = script("Hello", " **wörld**", " 👋")
    engine.requests.clear()
    try:
        with no_problems(tab, open_server):
            load(tab, open_server)
            models_known(tab)
            yield tab
    finally:
        forget(tab, open_server)
    wait_until(lambda: engine.num_running == 0)  # the next test has the engine for itself


@pytest.fixture
def own_page(browser: "Browser", open_server: LiveServer) -> "Iterator[Page]":
    """A page in a tab of its own, for scripts that stay in it."""
    from .driver import open_tab

    with open_tab(browser, open_server) as tab:
        yield tab
