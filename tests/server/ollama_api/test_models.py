"""Lists of models, pulls, loads and unloads, and the names that clients give."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.access.keys import KeyStore
from stonechat_server.access.keys_file import add_key
from tests.server.catalog.scripted_models import GIB, models
from tests.server.catalog.test_on_demand import pair, serving
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.fake_media import IMAGES
from tests.server.ollama_api.conftest import USER, ask, error, lines


def test_the_list(client: TestClient) -> None:
    (model,) = client.get("/api/tags").json()["models"]
    created = datetime.fromisoformat(model.pop("modified_at"))
    assert abs((datetime.now(UTC) - created).total_seconds()) < 600
    details = {
        **{"parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"]},
        **{"parameter_size": "1M", "quantization_level": "float32"},
    }
    assert model == {
        "name": "tiny-test:latest",
        "model": "tiny-test:latest",
        "size": 4_000_000,
        "digest": "0123456789abcdef",
        "details": details,
        "capabilities": ["completion", "tools", "thinking"],
    }
    assert client.head("/api/tags").status_code == 200


def test_what_is_loaded(client: TestClient) -> None:
    (model,) = client.get("/api/ps").json()["models"]
    assert (model["name"], model["context_length"]) == ("tiny-test:latest", 4096)
    assert model["size"] > 4_000_000
    assert (model["size_vram"], model["expires_at"][:4]) == (0, "9999")


def test_one_model(client: TestClient, engine: FakeEngine) -> None:
    for body in ({"model": "tiny-test"}, {"name": "tiny-test:latest"}, {}):
        shown = client.post("/api/show", json=body).json()
        assert shown["model_info"] == {
            "general.architecture": "llama",
            "general.basename": "tiny-test",
            "general.parameter_count": 1_000_000,
            "llama.context_length": 4096,
        }
        assert shown["template"] == engine.tokenizer.chat_template
    assert "'nope'" in error(client, "/api/show", 404, model="nope")


def test_capabilities_are_those_of_the_model(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.model = model_info(images=IMAGES, num_parameters=1_700_000_000)
    engine.tokenizer.chat_template = "{{ messages[0].content }}"
    shown = new_client().post("/api/show", json={}).json()
    assert shown["capabilities"] == ["completion", "vision"]
    assert shown["details"]["parameter_size"] == "1.7B"


def test_a_pull_of_a_served_model_succeeds(client: TestClient) -> None:
    assert lines(client, "/api/pull", model="tiny-test") == [{"status": "success"}]
    assert ask(client, "/api/pull", model="tiny-test:latest") == {"status": "success"}
    assert "Available: 'tiny-test'" in error(client, "/api/pull", 404, model="llama3.2")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", f"/api/{name}") for name in ("create", "copy", "push", "blobs/sha256:1")),
        ("DELETE", "/api/delete"),
    ],
)
def test_models_are_not_managed(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path, json={"model": "tiny-test"})
    assert response.status_code == 404
    (text,) = response.json().values()
    assert text.endswith("GET /api/tags lists them.")
    assert "when the server starts" in text


def test_the_version_is_newer_than_what_clients_ask_for(client: TestClient) -> None:
    version = client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 12, 0)


def test_the_page_is_still_there(client: TestClient) -> None:
    assert client.get("/").headers["content-type"].startswith("text/html")
    assert client.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_a_tag_may_follow_a_name(client: TestClient, path: str) -> None:
    for name, status in (("tiny-test:latest", 200), ("tiny-test:7b", 404), (":latest", 404)):
        body = {"model": name, "messages": [USER]}
        assert client.post(path, json=body).status_code == status, name
    assert client.get("/v1/models/tiny-test:latest").json()["id"] == "tiny-test"


def test_a_name_with_a_tag_of_its_own_comes_first(new_client: ClientFactory) -> None:
    client = new_client(served_model_name=["a", "a:latest"])
    answer = client.post("/v1/chat/completions", json={"model": "a:latest", "messages": [USER]})
    assert answer.json()["model"] == "a:latest"
    names = [model["name"] for model in client.get("/api/tags").json()["models"]]
    assert names == ["a:latest", "a:latest"]


def loaded(client: TestClient) -> list[str]:
    return [model["name"] for model in client.get("/api/ps").json()["models"]]


def test_models_are_loaded_and_unloaded(tmp_path: Path) -> None:
    them = pair(keep_alive=60)
    with serving(them) as client:
        tags = client.get("/api/tags").json()["models"]
        assert [model["name"] for model in tags] == ["a:latest", "b:latest"]
        assert {*tags[0]["capabilities"]} == {"completion"}
        assert tags[0]["digest"] == ""
        assert loaded(client) == []
        assert ask(client, model="b:latest", messages=[])["done_reason"] == "load"
        assert loaded(client) == ["b:latest"]
        stream = lines(client, model="a")
        assert stream[-1]["done_reason"] == "stop"
        assert loaded(client) == ["a:latest", "b:latest"]
        them.loader.started.clear()
        for _ in range(2):
            for zero in (0, "0", "0s", 0.0, "0h0m0s", "-0.0ms"):
                done = ask(client, "/api/generate", model="a", keep_alive=zero)["done_reason"]
                assert done == "unload"
                assert loaded(client) == ["b:latest"]
        assert them.loader.started == []
        assert ask(client, model="b", messages=[], keep_alive="0h10m0s")["done_reason"] == "load"
        assert ask(client, "/api/embed", model="b", keep_alive=0)["embeddings"] == []
        assert loaded(client) == []


def test_when_a_model_ends() -> None:
    them = models({"a": 4, "b": 4}, {"a": {"pinned": True}}, keep_alive=60)
    with serving(them) as client:
        for name in "ab":
            ask(client, model=name, messages=[])
        first, second = client.get("/api/ps").json()["models"]
        assert first["expires_at"].startswith("9999")
        assert not second["expires_at"].startswith("9999")
        assert second["size"] >= 4 * GIB - 1


def test_a_load_that_fails_is_an_error() -> None:
    them = pair()
    them.loader.errors["b"] = "no such file"
    with serving(them, keep_alive_interval=0.01) as client:
        assert "no such file" in error(client, status=503, model="b")
        assert "no such file" in error(client, status=503, model="b", messages=[])


def test_no_comments_while_a_model_loads() -> None:
    them = pair()
    with serving(them, keep_alive_interval=0.001) as client:
        assert lines(client, model="b")[-1]["done"] is True


def test_keys_decide_what_is_seen_and_unloaded(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    secret = add_key(file, "one", models=["b"])
    headers = {"Authorization": f"Bearer {secret}"}
    with serving(pair(), KeyStore(file)) as client:
        tags = client.get("/api/tags", headers=headers).json()["models"]
        assert [model["name"] for model in tags] == ["b:latest"]

        def post(**body: Any) -> int:
            return client.post("/api/chat", json=body, headers=headers).status_code

        assert post(model="b", messages=[]) == 200
        assert post(model="a:latest", messages=[]) == 404
        assert post(model="b", messages=[], keep_alive=0) == 403
        assert json.loads(client.get("/api/ps", headers=headers).text)["models"]
