import io
import json
import logging
import sys

import httpx
import pytest

from stonechat_server.observability.access_log import StderrHandler
from stonechat_server.observability.json_log import JsonFormatter
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body
from tests.server.conftest import ClientFactory
from tests.server.live_server import live_server


def test_the_access_line_of_a_request(
    new_client: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stonechat.access")
    client = new_client(api_key=["k"])
    request = body(messages=[{"role": "user", "content": "a private question"}])
    headers = {"authorization": "Bearer k", "x-request-id": "mine"}
    usage = client.post(URL, json=request, headers=headers).json()["usage"]
    record = caplog.records[-1]
    line = json.loads(JsonFormatter().format(record))
    assert (line["request_id"], line["status"], line["path"]) == ("mine", 200, URL)
    assert line["key"].startswith("key-")
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["completion_tokens"] == usage["completion_tokens"]
    assert (line["finish"], line["stream"]) == ("stop", False)
    assert line["first_token_milliseconds"] >= 0
    assert "private" not in caplog.text
    assert f"completion_tokens={usage['completion_tokens']}" in record.getMessage()


def test_head_is_answered_as_get_without_the_body(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="stonechat.access")
    with live_server(Settings()) as server:
        for path in ("health", "v1/models", ""):
            get, head = (httpx.request(name, server.url + path) for name in ("GET", "HEAD"))
            assert (head.status_code, head.content) == (200, b"")
            for name in ("content-type", "content-length"):
                assert head.headers[name] == get.headers[name]
        assert httpx.head(server.url + "v1/chat/completions").headers["allow"] == "POST"
    lines = [record.getMessage() for record in caplog.records]  # of a server that has ended
    for path in ("/health", "/v1/models", "/"):
        assert sum(f"method=HEAD path={path} status=200" in line for line in lines) == 1


def test_an_exception_is_one_json_line() -> None:
    try:
        raise ValueError("broken\nin two")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("stonechat", logging.ERROR, "f", 1, "it %s", ("failed",), info)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert "broken" in line["exception"]


def test_lines_follow_stderr_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = io.StringIO(), io.StringIO()
    logger = logging.Logger("of its own")
    monkeypatch.setattr(sys, "stderr", first)
    logger.addHandler(StderrHandler())
    logger.info("one")
    first_text = first.getvalue()
    first.close()
    logger.info("lost")
    monkeypatch.setattr(sys, "stderr", second)
    logger.info("two")
    assert (first_text, second.getvalue()) == ("one\n", "two\n")
