"""What a 404 and a 405 say."""

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from stonechat_server.api import unknown_paths
from stonechat_server.api.unknown_paths import NOTES
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine

CHAT = "POST /v1/chat/completions"
WRONG_BASE = "base URL is wrong"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """One for all: the first answer that lists the paths takes long."""
    app = create_app(Settings(), FakeEngine())
    with TestClient(app, "http://127.0.0.1:8000") as client:
        yield client


def message(client: TestClient, method: str, path: str, status: int = 404) -> str:
    response = client.request(method, path)
    assert response.status_code == status
    error = error_of(response)
    assert error["code"] == {404: "not_found", 405: "method_not_allowed"}[status]
    return str(error["message"])


def before_list(text: str) -> str:
    return text.partition(" Served: ")[0]


def listed(text: str) -> set[str]:
    served = text.partition(" Served: ")[2].partition(". GET /docs")[0].split(", ")
    return {
        f"{method} {entry.rpartition(' ')[2]}"
        for entry in served
        for method in entry.rpartition(" ")[0].split(" and ")
    }


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completion", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/V1/Chat/Completions", CHAT),
        ("/v1//chat/completions", CHAT),
        ("/v1/chat", CHAT),
        ("/chat/completion", CHAT),
        ("/v1/chat/completions/rendr", "POST /v1/chat/completions/render"),
        ("/v1/model", "GET /v1/models"),
        ("/v1/detokenise", "POST /detokenize"),
        ("/healthz", "GET /health"),
    ],
)
def test_the_nearest_path_is_named(client: TestClient, path: str, meant: str) -> None:
    text = before_list(message(client, "POST", path))
    assert text.startswith(f"POST {path} is not served here.")
    assert text.endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models//", "/models/"])
def test_no_name_of_a_model_is_not_an_unknown_model(client: TestClient, path: str) -> None:
    text = before_list(message(client, "GET", path))
    assert text == f"GET {path} is not served here. Did you mean GET /v1/models?"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/v1/chat/completions",
        "/v1/chat/completions/chat/completions",
        "/v1/chat/completions/v1/chat/completions",
        "/api/v1/chat/completions",
        "/openai/v1/chat/completions",
        "/v1/chat/chat/completions",
    ],
)
def test_a_wrong_base_url_is_noticed(client: TestClient, path: str) -> None:
    text = message(client, "POST", path)
    assert f"Did you mean {CHAT}?" in text
    assert WRONG_BASE in text


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/version", "GET /version"),
        ("/v1/health", "GET /health"),
        ("/v1/engines/x/completions", "use POST /v1/completions"),
        ("/v1/threads/x/messages", "are stored here"),
        ("/v1/fine_tuning/jobs/x/models", "Models are not trained here"),
    ],
)
def test_a_base_url_is_not_called_wrong_if_it_is_right(
    client: TestClient, path: str, meant: str
) -> None:
    text = before_list(message(client, "DELETE", path))
    assert meant in text
    assert WRONG_BASE not in text
    assert "Did you mean" not in text or meant.startswith("GET")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/completion", "another server's own API"),
        ("/v1/audio/speech", "No audio, images or video are made here"),
        ("/v1/images/generations", "No audio, images or video are made here"),
        ("/v1/uploads/upload_1/parts", "POST /v1/files"),
        ("/v1/chat/completions/chatcmpl-1234", "are stored here"),
        ("/v1/moderations", "no moderation model"),
        ("/classify", "POST /v1/rerank"),
    ],
)
def test_other_servers_paths_get_a_sentence(client: TestClient, path: str, words: str) -> None:
    text = before_list(message(client, "POST", path))
    assert words in text
    assert WRONG_BASE not in text


def test_all_operations_are_listed(client: TestClient) -> None:
    text = message(client, "GET", "/nothing")
    documented = {
        f"{method.upper()} {path}"
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    assert listed(text) == documented
    assert "Did you mean" not in text
    assert client.get("/docs").status_code == 200


def test_notes_name_only_what_is_served(client: TestClient) -> None:
    served = listed(message(client, "GET", "/nothing"))
    for path, note in NOTES.items():
        for operation in re.findall(r"(?:GET|POST) [\w/]+", note):
            assert operation in served, path


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/tiny-test", "GET, HEAD"),
        ("PUT", "/", "GET, HEAD"),
        ("POST", "/v1/responses/resp_1", "GET, DELETE, HEAD"),
        ("PUT", "/v1/files/file-1", "GET, DELETE, HEAD"),
        ("HEAD", "/v1/chat/completions", "POST"),
    ],
)
def test_a_405_names_the_methods(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    if method != "HEAD":
        assert message(client, method, path, 405) == (
            f"{method} {path} is not allowed; allowed: {allowed}."
        )
    for name in ("GET", "HEAD"):
        assert (client.request(name, path).status_code != 405) is (name in allowed.split(", "))


@pytest.mark.parametrize(
    "path", ["/" + "x" * 20_000, "/v1" * 5_000, "/a%0d%0ab%00%1b%5b", "/%f0%9f%91%8b%ff"]
)
def test_hostile_paths_are_cut_and_quoted(client: TestClient, path: str) -> None:
    text = message(client, "POST", path)
    assert len(text) < 1_500
    assert text.isascii()
    assert text.isprintable()


def test_a_method_is_cut(client: TestClient) -> None:
    assert len(message(client, "M" * 5_000, "/nothing")) < 1_500


def test_the_work_does_not_grow_with_the_path(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    find = unknown_paths.difflib.get_close_matches

    def recorded(path: str, *rest: object, **options: object) -> list[str]:
        compared.append(path)
        return find(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(unknown_paths.difflib, "get_close_matches", recorded)
    message(client, "POST", "/v1/chat/completion" + "s" * 10_000)
    assert [len(path) for path in compared] == [unknown_paths.MAX_PATH_LENGTH]


def test_the_list_needs_no_key(new_client: ClientFactory) -> None:
    assert CHAT in message(new_client(api_key=["k"]), "GET", "/nothing")
