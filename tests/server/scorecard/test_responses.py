"""The scorecard's checks of responses, against this server and against one that forgets."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.scorecard.outcome import CHECKS, HONOURED, Verdict
from stonechat_server.scorecard.server import Answer, Server
from tests.server.fake_engine import FakeEngine, text_script

from .test_scorecard import find_with

RUNS = {check.name: check.run for check in CHECKS if check.part == "responses"}


class InProcess(Server):
    """A server in this process. It never sees the fields `dropped`."""

    def __init__(self, client: TestClient, *dropped: str) -> None:
        self.model, self._client, self._dropped = "tiny-test", client, dropped

    async def send(self, method: str, path: str, body: Any = b"") -> Answer:
        body = {k: v for k, v in body.items() if k not in self._dropped} if body else None
        response = self._client.request(method, f"/v1{path}", json=body)
        return Answer(response.status_code, dict(response.headers), response.text)


@pytest.mark.parametrize("name", RUNS)
def test_this_server_honours_all(client: TestClient, engine: FakeEngine, name: str) -> None:
    engine.script = text_script("At ", "noon.")
    assert find_with(RUNS[name], InProcess(client)) == HONOURED


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("previous_response_id", Verdict.IGNORED),
        ("an unknown previous_response_id", Verdict.IGNORED),
        ("store: false", Verdict.IGNORED),
    ],
)
def test_a_server_that_ignores_fields_is_found_out(
    client: TestClient, name: str, verdict: Verdict
) -> None:
    server = InProcess(client, "previous_response_id", "store")
    assert find_with(RUNS[name], server).verdict is verdict


@pytest.mark.parametrize("name", ["previous_response_id", "a stored response"])
def test_a_server_without_the_routes_refuses(client: TestClient, name: str) -> None:
    class Old(InProcess):
        async def send(self, method: str, path: str, body: Any = b"") -> Answer:
            if method != "POST" or "previous_response_id" in body:
                return Answer(404, {}, "{}")
            return await super().send(method, path, body)

    assert find_with(RUNS[name], Old(client)).verdict is Verdict.REFUSED


def test_carried_instructions_are_wrong(client: TestClient) -> None:
    class Carries(InProcess):
        async def send(self, method: str, path: str, body: Any = b"") -> Answer:
            if "previous_response_id" in (body or ()):
                body = body | {"instructions": "The ferry to the island leaves at noon. " * 10}
            return await super().send(method, path, body)

    run = RUNS["instructions of an earlier turn"]
    assert find_with(run, Carries(client)).verdict is Verdict.WRONG
