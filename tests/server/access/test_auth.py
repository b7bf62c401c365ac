"""API keys, and the request ids of answers."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from stonechat_server.access.keys_file import add_key
from tests.server.bodies import URL, body, error_of, stream
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


@pytest.mark.parametrize("left_out", [{}, {"model": None}])
def test_without_a_model_the_first_that_the_key_may_use_answers(
    new_client: ClientFactory, tmp_path: Path, left_out: dict[str, None]
) -> None:
    path = tmp_path / "keys.toml"
    secrets = {
        "one": add_key(path, "any"),
        "two": add_key(path, "limited", models=("three", "two")),
        "": add_key(path, "none", models=("gone",)),
    }
    client = new_client(served_model_name=["one", "two", "three"], keys_file=path)
    document = {"messages": body()["messages"], **left_out}
    for name, secret in secrets.items():
        response = client.post(URL, headers={"Authorization": f"Bearer {secret}"}, json=document)
        if name:
            assert response.json()["model"] == name
            continue
        assert response.status_code == 404
        error = error_of(response)
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert error["message"] == "This key may use no model of this server."
    headers = {"Authorization": f"Bearer {secrets['']}"}
    error = error_of(client.post(URL, headers=headers, json=body(model="one")))
    assert error["message"].endswith(
        "does not exist here. This key may use no model of this server."
    )


def test_the_default_model_is_named_in_streams(client: TestClient) -> None:
    assert {chunk["model"] for chunk in stream(client, model=None)} == {"tiny-test"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-api-key", "secret-one")], 200),
        ([("x-api-key", "  secret-two ")], 200),
        ([("x-api-key", "wrong")], 401),
        ([("x-api-key", "")], 401),
        ([("x-api-key", "Bearer secret-one")], 401),
        ([("x-api-key", "secret-one"), ("authorization", "Bearer secret-one")], 200),
        ([("x-api-key", ""), ("authorization", "Bearer secret-one")], 200),
        ([("x-api-key", "secret-one"), ("authorization", "Basic dTpw")], 200),
        ([("x-api-key", "secret-one"), ("authorization", "Bearer ")], 200),
        ([("x-api-key", "secret-one"), ("authorization", "Bearer secret-two")], 401),
        ([("x-api-key", "wrong"), ("authorization", "Bearer secret-one")], 401),
        ([("x-api-key", "secret-one"), ("x-api-key", "secret-two")], 401),
        ([("authorization", "Bearer secret-one"), ("authorization", "Bearer wrong")], 401),
    ],
)
def test_a_key_may_come_in_another_header(
    locked: TestClient, headers: list[tuple[str, str]], status: int
) -> None:
    for method, path in (("POST", URL), ("GET", "/v1/models")):
        response = locked.request(method, path, headers=headers, json=body())
        assert response.status_code == status
        if status == 401:
            assert error_of(response)["code"] == "invalid_api_key"


def test_two_different_keys_are_named_as_the_fault(locked: TestClient) -> None:
    headers = {"x-api-key": "secret-one", "authorization": "Bearer secret-two"}
    error = error_of(locked.get("/v1/models", headers=headers))
    assert error["message"] == "The request has different API keys; send one."


@pytest.mark.parametrize("key", ["kläy", "ключ", "é", "鍵"])
def test_a_key_may_have_any_letters(new_client: ClientFactory, key: str) -> None:
    client = new_client(api_key=[key])
    encodings = ["utf-8"] if any(letter > "\xff" for letter in key) else ["utf-8", "latin-1"]
    for encoding in encodings:
        for headers in ({"Authorization": f"Bearer {key}".encode(encoding)},
                        {"X-Api-Key": key.encode(encoding)}):  # fmt: skip
            assert client.get("/v1/models", headers=headers).status_code == 200
    wrong = {"X-Api-Key": f"{key}é".encode()}
    assert client.get("/v1/models", headers=wrong).status_code == 401


def test_an_open_server_needs_no_key(client: TestClient) -> None:
    headers = {"x-api-key": "any", "authorization": "Bearer other"}
    assert client.get("/v1/models", headers=headers).status_code == 200


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
