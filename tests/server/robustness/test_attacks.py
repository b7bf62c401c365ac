"""The attacks of `scripts/soak/attacks.py` on a server with a scripted engine.

The script measures gaps and memory; here only the order of events counts.
"""

import asyncio
import threading
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from stonechat_models import GenerateRequest
from stonechat_server.serving.connections import SilentConnections
from tests.server.bodies import URL, body
from tests.server.fake_engine import FakeEngine, delta, output, text_script
from tests.server.live import Live, live_server

SOAK = Path(__file__).parents[3] / "scripts" / "soak"
REFUSALS = {
    "one_header": {"431"},
    "many_headers": {"431"},
    "request_line": {"431"},
    "trailers": {"431"},
    "chunk_extensions": {"431"},
    "tiny_chunks": {"413"},
    "slow_headers": {"closed", "reset"},
    "deep_json": {"400"},
}
KEY = "secret"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def attacks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SOAK)
    import attacks as script

    return script


@pytest.mark.parametrize("name", REFUSALS)
def test_an_attack_is_refused_and_others_are_served(attacks: Any, name: str) -> None:
    """A stream that began before the attack ends after it, and a new request is answered."""
    attack_is_over = threading.Event()

    def play(request: GenerateRequest) -> Any:
        if request.params.max_tokens != 2:
            return text_script("short")(request)
        return held(request, attack_is_over)

    limits = {"max_body_size": 2**19, "max_images_size": 1}
    with live_server(FakeEngine(play), api_key=[KEY], **limits) as live:
        live.server._silent = SilentConnections(seconds=0.2)
        neighbour = Stream(live)
        neighbour.has_begun.wait()
        statuses = asyncio.run(attack(attacks, live.port, attacks.ATTACKS[name]))
        assert set(statuses) <= REFUSALS[name]
        live.server._silent = SilentConnections()
        answer = httpx.post(live.url + URL, json=body(), headers=HEADERS, timeout=60)
        assert answer.status_code == 200
        attack_is_over.set()
        neighbour.thread.join(60)
        assert neighbour.text.count("data: {") >= 2
        assert neighbour.text.endswith("data: [DONE]\n\n")


def held(request: GenerateRequest, release: threading.Event) -> Any:
    yield output(request, delta("first"))
    while not release.is_set():
        yield 0.005
    yield from text_script("last")(request)


class Stream:
    """Reads a stream in a thread."""

    def __init__(self, live: Live) -> None:
        self.text = ""
        self.has_begun = threading.Event()
        self.thread = threading.Thread(target=self._read, args=(live.url + URL,))
        self.thread.start()

    def _read(self, url: str) -> None:
        fields = body(stream=True, max_tokens=2)
        with httpx.stream("POST", url, json=fields, headers=HEADERS, timeout=60) as answer:
            for text in answer.iter_text():
                self.text += text
                self.has_begun.set()


async def attack(attacks: ModuleType, port: int, kind: Any) -> Counter[str]:
    """Send an attack once on each of its connections, those of slow ones at most 20."""
    num_connections = min(kind.num_connections, 20)
    sending = [attacks.send_attack(port, kind, KEY) for _ in range(num_connections)]
    return Counter(await asyncio.gather(*sending))
