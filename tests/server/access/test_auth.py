"""API keys, and the request ids of answers."""

import pytest
from fastapi.testclient import TestClient

from tests.server.bodies import URL, body, error_of
from tests.server.conftest import ClientFactory

GOOD = ["secret-one", "secret-two"]


@pytest.fixture
def locked(new_client: ClientFactory) -> TestClient:
    return new_client(api_key=GOOD)


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret-one", "secret-one",
     "Bearer secret-one2", "Bearer secret-on", "Bearer SECRET-ONE", "Bearer \u00e9"],
)  # fmt: skip
def test_without_a_known_key_nothing_is_served(locked: TestClient, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("POST", URL), ("GET", "/v1/models"), ("GET", "/v1/models/tiny-test")):
        response = locked.request(method, path, headers=headers, json=body())
        assert response.status_code == 401
        assert error_of(response)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert "secret" not in response.text


def test_the_key_is_checked_before_the_body(locked: TestClient) -> None:
    assert locked.post(URL, content=b"{").status_code == 401


@pytest.mark.parametrize("key", GOOD)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_every_key_is_accepted(locked: TestClient, key: str, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {key}"}
    assert locked.post(URL, headers=headers, json=body()).status_code == 200


def test_a_key_of_bytes_that_are_not_utf8_does_not_disturb_others(
    new_client: ClientFactory,
) -> None:
    client = new_client(api_key=["\udcff", "good"])  # as Python reads the byte ff in an argument
    for header, status in ((b"Bearer good", 200), (b"Bearer \xff", 401)):
        response = client.get("/v1/models", headers={"Authorization": header})
        assert response.status_code == status


def test_health_needs_no_key(locked: TestClient) -> None:
    assert locked.get("/health").status_code == 200
    assert locked.get("/ready").status_code == 200


def test_every_answer_has_an_id(client: TestClient) -> None:
    paths = ["/v1/models", "/nothing", "/health", URL]
    ids = [client.get(path).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("sent_id", "is_kept"),
    [("my-id_1", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False)],
)
def test_a_clients_own_id_is_kept_if_it_is_harmless(
    client: TestClient, sent_id: str, is_kept: bool
) -> None:
    answer_id = client.get("/health", headers={"x-request-id": sent_id}).headers["x-request-id"]
    assert (answer_id == sent_id) is is_kept
    assert answer_id
