from pathlib import Path
from typing import Any

import pytest

from stonechat_server.access.browser_guard import is_own_host
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


MALFORMED = [
    "http://[", "http://[::1", "http://]", "http://[x]", "http://[::1]]:8000", "http://[v1.a]",
    "http://", "://", "//", "http:///", "[", "]", "null", "http://127.0.0.1:8000/",
    "http://127.0.0.1:8000:8000", "http://127.0.0.1:port", "http://a@127.0.0.1:8000", "a", ",",
    "http://\u2100.example", "http://\uff0e", "http://a b", "%00", "http://%5b", "\xff", "?", "#",
    "http://127.0.0.1:8000 http://evil.example", "http://127.0.0.1:8000.evil.example",
]  # fmt: skip


@pytest.mark.parametrize("settings", [{}, {"api_key": ["secret"]}, {"cors_origin": ["http://b"]}])
def test_malformed_origins_are_refused(new_client: ClientFactory, settings: dict[str, Any]) -> None:
    client = new_client(**settings)
    for origin in MALFORMED:
        headers = {"origin": origin.encode(), "host": b"127.0.0.1:8000"}
        for response in (
            client.post(URL, json=body(), headers=headers),
            client.options(URL, headers=headers | {"access-control-request-method": b"GET"}),
        ):
            assert response.status_code == 403, origin
            assert error_of(response)["code"] == "origin_not_allowed"


def test_malformed_hosts_and_referers_do_no_harm(new_client: ClientFactory) -> None:
    with_key, open_client = new_client(api_key=["secret"]), new_client()
    for value in MALFORMED:
        named = {"host": value.encode(), "referer": value.encode()}
        assert with_key.get("/health", headers=named).status_code == 200, value
        assert open_client.get("/health", headers=named).status_code == 403, value
        referer = {"referer": value.encode()}
        assert open_client.get("/health", headers=referer).status_code == 200, value


def test_a_page_without_an_origin_of_its_own_is_foreign(new_client: ClientFactory) -> None:
    """`null` does not match a request without a host."""
    client = new_client(api_key=["secret"])
    assert client.get("/health", headers={"origin": "null", "host": ""}).status_code == 403


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
    preflight["access-control-request-headers"] = "x-api-key"
    response = client.options(URL, headers=preflight)
    assert response.headers["access-control-allow-headers"] == "x-api-key"
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
    ("header", "is_own"),
    [("a:1", True), ("a", True), ("[::1]:80", True), ("[::1]", True), ("b:1", False), ("", False)],
)
def test_a_host_header_may_have_a_port_and_brackets(header: str, is_own: bool) -> None:
    assert is_own_host(header, {"a"}) is is_own


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
        response = client.post(URL, json=body(), headers={"x-api-key": key})
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
