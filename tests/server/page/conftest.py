"""A real server with a scripted engine, and a headless Chromium to open its page."""

import math
import shutil
from collections.abc import Iterator

import pytest

from stonechat_models import FinishReason, GenerateRequest, LogprobEntry, RequestOutput, TopLogprob
from stonechat_server.settings import Settings
from tests.server.fake_engine import Script, delta, output
from tests.server.live_server import LiveServer, live_server

KEY = "sk-page-test"


def entry(text: str, probability: float, *others: tuple[str, float]) -> LogprobEntry:
    chosen = TopLogprob(0, text, text.encode(), math.log(probability))
    alternatives = [TopLogprob(1, t, t.encode(), math.log(p)) for t, p in others]
    top = tuple(sorted([chosen, *alternatives], key=lambda alternative: -alternative.logprob))
    return LogprobEntry(0, text, text.encode(), math.log(probability), top)


def script(*pieces: str, pause: float = 0.0) -> Script:
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
            items += [pause] if pause else []
            items.append(output(request, *deltas, finished=last, cached=3))
        return items

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
def browser() -> Iterator[object]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium to run: {str(error).splitlines()[0]}")
        yield browser
        browser.close()
