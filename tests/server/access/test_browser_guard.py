from pathlib import Path

import pytest

from stonechat_server.access.browser_guard import host_name
from stonechat_server.access.keys_file import add_key
from tests.server.bodies import URL, body, error_of
from tests.server.conftest import ClientFactory


def test_an_open_server_answers_to_its_own_names_only(new_client: ClientFactory) -> None:
    client = new_client(allowed_host=["stone.example"])
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "stone.example"):
        assert client.get("/health", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        response = client.get("/health", headers={"host": host})
        assert response.status_code == 403, host
        assert error_of(response)["code"] == "host_not_allowed"


def test_with_a_key_any_host_name_is_accepted(new_client: ClientFactory) -> None:
    client = new_client(api_key=["secret"])
    assert client.get("/health", headers={"host": "stone.example"}).status_code == 200


def test_pages_of_other_origins_are_refused(new_client: ClientFactory) -> None:
    client = new_client()
    same_origin = {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}
    assert client.post(URL, json=body(), headers=same_origin).status_code == 200
    for origin in (
        "https://evil.example",
        "null",
        "http://127.0.0.1:9999",
        "http://localhost:8000",
    ):
        response = client.post(URL, json=body(), headers=same_origin | {"origin": origin})
        assert response.status_code == 403, origin
        assert error_of(response)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers


def test_cors_is_answered_to_allowed_origins(new_client: ClientFactory) -> None:
    client = new_client(cors_origin=["https://app.example"])
    preflight = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    response = client.options(URL, headers=preflight)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert response.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "access-control-allow-credentials" not in response.headers
    answer = client.post(URL, json=body(), headers={"origin": "https://app.example"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert client.options(URL, headers=preflight | {"origin": "https://b"}).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/nowhere", URL, "/metrics"])
def test_every_answer_has_the_security_headers(new_client: ClientFactory, path: str) -> None:
    headers = new_client().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("header", "name"),
    [("a:1", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("", "")],
)
def test_host_name(header: str, name: str) -> None:
    assert host_name(header) == name


def test_no_secret_in_logs_or_errors(
    new_client: ClientFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = add_key(tmp_path / "keys.toml", "alice")
    client = new_client(keys_file=tmp_path / "keys.toml", api_key=["plain-secret"])
    texts = []
    for key in (secret, "plain-secret", "wrong-secret"):
        response = client.post(URL, json=body(), headers={"authorization": f"Bearer {key}"})
        texts += [response.text, str(response.headers)]
    everything = caplog.text + "".join(texts)
    for key in (secret, "plain-secret", "wrong-secret"):
        assert key not in everything


def test_a_path_cannot_forge_a_log_line(
    new_client: ClientFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stonechat.access")
    new_client().get("/x%0astatus=200%20forged")
    assert "\n" not in caplog.records[-1].getMessage()
