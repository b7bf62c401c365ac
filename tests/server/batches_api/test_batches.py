"""`/v1/batches` over HTTP: what comes out, against direct requests and the published schema."""

import json
from codecs import BOM_UTF8
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from stonechat_models import EngineDeadError
from stonechat_server.access.keys_file import add_key
from stonechat_server.batches_api.check import InputCheck
from stonechat_server.observability.ledger import Ledger, open_database, usage
from tests.openai_schema import validate
from tests.server.batches_api.batch_files import create, jsonl, line, results, wait_for
from tests.server.bodies import URL, error_of
from tests.server.fake_engine import FakeEngine
from tests.server.storing import NewServer, storage_of, upload

LINES = [line("a"), line("b", max_completion_tokens=2), line("c", temperature=9), line("d", n=2)]


def test_the_results_are_those_of_direct_requests(server: TestClient) -> None:
    batch = create(server, LINES, metadata={"night": "1"})
    validate("Batch", batch)
    assert (batch["status"], batch["metadata"]) == ("validating", {"night": "1"})
    batch = wait_for(server, batch)
    validate("Batch", batch)
    assert (batch["status"], batch["model"]) == ("completed", "tiny-test")
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    output, errors = results(server, batch)
    assert (set(output), set(errors)) == ({"a", "b", "d"}, {"c"})
    num_tokens = 0
    for request in LINES:
        found = (output | errors)[request["custom_id"]]
        direct = server.post(URL, json=request["body"])
        assert found["response"]["status_code"] == direct.status_code
        assert found["error"] is None
        assert found["response"]["request_id"].startswith("req_")
        assert _without_ids(found["response"]["body"]) == _without_ids(direct.json())
        num_tokens += direct.json().get("usage", {}).get("total_tokens", 0)
    assert batch["usage"]["total_tokens"] == num_tokens
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["completed_at"]
    assert batch["expires_at"] == batch["created_at"] + 86_400


def _without_ids(body: Any) -> Any:
    return {name: value for name, value in body.items() if name not in ("id", "created")}


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/responses"])
def test_other_endpoints(server: TestClient, url: str) -> None:
    batch = wait_for(server, create(server, [line("a", url), line("b", url)], url))
    output, _ = results(server, batch)
    schema = {"/v1/completions": "CreateCompletionResponse", "/v1/responses": "Response"}[url]
    for found in output.values():
        validate(schema, found["response"]["body"])
    assert len(output) == 2
    assert batch["usage"]["output_tokens"] > 0


def test_the_responses_of_a_batch_are_stored_if_they_ask_for_it(server: TestClient) -> None:
    url = "/v1/responses"
    lines = [line("a", url), line("b", url, store=True), line("c", url, store=False)]
    output, _ = results(server, wait_for(server, create(server, lines, url)))
    for id, is_stored in (("a", False), ("b", True), ("c", False)):
        answer = output[id]["response"]["body"]
        assert answer["store"] is is_stored
        found = server.get(f"{url}/{answer['id']}")
        assert found.status_code == (200 if is_stored else 404)


def test_an_input_may_begin_with_a_byte_order_mark(server: TestClient) -> None:
    content = BOM_UTF8 + jsonl([line("a"), line("b")]).replace(b"\n", b"\r\n")
    file = upload(server, content)
    fields = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
    batch = wait_for(server, server.post("/v1/batches", json=fields).json())
    output, _ = results(server, batch)
    assert output.keys() == {"a", "b"}


def test_openai_python_runs_a_batch(server: TestClient) -> None:
    client = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="any", http_client=server, max_retries=0
    )
    file = client.files.create(file=("in.jsonl", jsonl(LINES)), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    wait_for(server, made.to_dict())
    batch = client.batches.retrieve(made.id)
    assert batch.output_file_id is not None
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.expires_at == output.created_at + 7200
    assert len(client.files.content(output.id).text.splitlines()) == 3
    assert [item.id for item in client.batches.list(limit=1)] == [batch.id]
    validate("ListBatchesResponse", server.get("/v1/batches").json())


def problems_of(server: TestClient, content: bytes) -> list[tuple[str, Any, Any]]:
    file = upload(server, content)
    body = {"input_file_id": file["id"], "endpoint": URL, "completion_window": "24h"}
    batch = wait_for(server, server.post("/v1/batches", json=body).json())
    assert batch["status"] == "failed"
    validate("Batch", batch)
    found = batch["errors"]["data"]
    assert all(item["message"] for item in found)
    return [(item["code"], item["line"], item["param"]) for item in found]


def test_what_is_wrong_with_an_input_is_named_by_its_line(server: TestClient) -> None:
    wrong = [
        line("a"),
        line("a"),
        line("b") | {"method": "GET"},
        line("c") | {"url": "/v1/completions"},
        line("d") | {"body": 5},
        line("e", stream=True),
        line("f", model="other"),
        {"custom_id": "g"},
        line("") | {"custom_id": 7},
    ]
    content = jsonl(wrong) + b"\n{not json}\n[1]\n" + jsonl([line("h")])
    assert problems_of(server, content) == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("invalid_method", 3, "method"),
        ("invalid_url", 4, "url"),
        ("invalid_body", 5, "body"),
        ("invalid_body", 6, "body.stream"),
        ("model_not_found", 7, "body.model"),
        ("missing_required_parameter", 8, "method"),
        ("invalid_custom_id", 9, "custom_id"),
        ("invalid_json_line", 11, None),
        ("invalid_json_line", 12, None),
    ]
    assert problems_of(server, b"\n \n") == [("empty_file", None, None)]
    assert problems_of(server, b"\xff\n") == [("invalid_json_line", 1, None)]
    assert problems_of(server, b"[" * 100_000) == [("invalid_json_line", 1, None)]


def test_an_input_has_one_model_and_lines_of_a_bounded_length(new_server: NewServer) -> None:
    server = new_server(served_model_name=["one", "two"], max_body_size=1000, max_images_size=1)
    lines = [line("a", model="two"), line("b", model="one"), line("c", user="x" * 20_000)]
    assert problems_of(server, jsonl(lines)) == [
        ("mismatched_model", 2, "body.model"),
        ("line_too_long", 3, None),
    ]


def test_a_line_that_is_too_long_names_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "input.jsonl"
    path.write_bytes(b"x" * 20_000)
    (problem,) = InputCheck(URL, lambda name: "one", 1000).check(path).problems
    assert "--max-body-size" in problem.message
    assert "--max-images-size" in problem.message


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, "file_id"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, None),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
    ],
)
def test_a_batch_that_cannot_be(
    server: TestClient, fields: dict[str, Any], status: int, param: str | None
) -> None:
    body = {"input_file_id": upload(server)["id"], "endpoint": URL, "completion_window": "24h"}
    answer = server.post("/v1/batches", json=body | fields)
    assert answer.status_code == status
    assert param is None or error_of(answer)["param"] == param
    assert server.get("/v1/batches").json()["data"] == []


def test_batches_belong_to_a_key_which_is_charged(
    new_server: NewServer, engine: FakeEngine, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    secrets = {name: add_key(keys, name, requests_per_minute=600) for name in ("alice", "bob")}
    alice, bob = ({"authorization": f"Bearer {secret}"} for secret in secrets.values())
    url = f"sqlite:///{tmp_path / 'usage.db'}"
    server = new_server(keys_file=keys)
    server.headers.update(alice)
    ledger = Ledger(url, tmp_path / "journal", flush_seconds=60)
    from stonechat_server.observability.ledger.sink import record_in

    services = server.app.state.server  # type: ignore[attr-defined]
    services.sinks = (*services.sinks, partial(record_in, ledger))
    batch = wait_for(server, create(server, [line("a"), line("b")]))
    assert batch["status"] == "completed"
    path = f"/v1/batches/{batch['id']}"
    server.headers.update(bob)
    for answer in (server.get(path), server.post(path + "/cancel")):
        assert (answer.status_code, error_of(answer)["code"]) == (404, "batch_not_found")
    assert server.get(f"/v1/files/{batch['output_file_id']}").status_code == 404
    assert server.get("/v1/batches").json()["data"] == []
    body = {
        "input_file_id": batch["input_file_id"],
        "endpoint": URL,
        "completion_window": "24h",
    }
    assert server.post("/v1/batches", json=body).status_code == 404
    ledger.close()
    database = open_database(url)
    rows = usage(database, by=("key", "endpoint"))
    database.dispose()
    assert [(row.group, row.num_requests) for row in rows] == [(("alice", URL), 2)]
    assert all(request.priority >= 1 << 40 for request in engine.requests)


def test_a_file_in_use_cannot_be_deleted(new_server: NewServer, engine: FakeEngine) -> None:
    server = new_server()
    script = engine.script
    engine.script = lambda request: [60.0, *script(request)]
    batch = wait_for(server, create(server, [line("a")]), ["in_progress"])
    metrics = server.get("/metrics").text
    assert 'stonechat:batches_running{model_name="tiny-test"} 1.0' in metrics
    assert 'stonechat:batch_requests_pending{model_name="tiny-test"} 1.0' in metrics
    answer = server.delete(f"/v1/files/{batch['input_file_id']}")
    assert (answer.status_code, error_of(answer)["code"]) == (409, "file_in_use")
    server.post(f"/v1/batches/{batch['id']}/cancel")
    wait_for(server, batch)
    assert server.delete(f"/v1/files/{batch['input_file_id']}").status_code == 200


def test_a_key_may_have_so_many_unfinished_batches(
    new_server: NewServer, engine: FakeEngine
) -> None:
    server = new_server(batches_per_key=1)
    script = engine.script
    engine.script = lambda request: [60.0, *script(request)]
    batch = create(server, [line("a")])
    body = {
        "input_file_id": batch["input_file_id"],
        "endpoint": URL,
        "completion_window": "24h",
    }
    answer = server.post("/v1/batches", json=body)
    assert (answer.status_code, error_of(answer)["code"]) == (429, "too_many_batches")
    server.post(f"/v1/batches/{batch['id']}/cancel")
    wait_for(server, batch)
    assert server.post("/v1/batches", json=body).status_code == 200


def test_a_cancelled_batch_keeps_what_it_has(server: TestClient, engine: FakeEngine) -> None:
    script = engine.script

    def play(request: Any) -> Any:
        held = b"I am late" in bytes(request.prompt_token_ids)
        return [60.0, *script(request)] if held else script(request)

    engine.script = play
    batch = create(server, [line("a"), line("late-1"), line("late-2")])
    wait_for(server, batch, ["in_progress"])
    storage = storage_of(server)
    part = storage.files.folder / f"{batch['id']}.output"
    while not (part.exists() and part.stat().st_size):
        pass
    answer = server.post(f"/v1/batches/{batch['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelling")
    batch = wait_for(server, batch)
    assert (batch["status"], "cancelling_at" in batch) == ("cancelled", True)
    output, errors = results(server, batch)
    assert (set(output), set(errors)) == ({"a"}, {"late-1", "late-2"})
    assert {found["error"]["code"] for found in errors.values()} == {"batch_cancelled"}
    assert engine.num_running == 0
    again = server.post(f"/v1/batches/{batch['id']}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    done = wait_for(server, create(server, [line("a")]))
    assert server.post(f"/v1/batches/{done['id']}/cancel").status_code == 409


def test_an_expired_batch_says_what_did_not_run(server: TestClient, engine: FakeEngine) -> None:
    store = storage_of(server).files
    clock = store.clock
    store.clock = lambda: clock() - 86_400 + 1.5
    script = engine.script
    engine.script = lambda request: [60.0, *script(request)]
    batch = create(server, [line("a"), line("b")])
    store.clock = clock
    batch = wait_for(server, batch)
    validate("Batch", batch)
    assert batch["status"] == "expired"
    output, errors = results(server, batch)
    assert (set(output), set(errors)) == (set(), {"a", "b"})
    assert {found["error"]["code"] for found in errors.values()} == {"batch_expired"}
    assert json.dumps(errors["a"]["response"]) == "null"


def test_a_request_that_is_refused_for_now_is_tried_again(
    server: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stonechat_server.errors.ENGINE_RETRY_AFTER", "0.01")
    script, seen = engine.script, set()

    def play(request: Any) -> Any:
        prompt = tuple(request.prompt_token_ids)
        if prompt in seen:
            return script(request)
        seen.add(prompt)
        return [EngineDeadError("the engine starts again")]

    engine.script = play
    batch = wait_for(server, create(server, [line(f"r{i}") for i in range(5)]))
    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert len(engine.requests) == 10
