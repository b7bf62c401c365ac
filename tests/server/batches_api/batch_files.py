"""Inputs of batches, and their results."""

import json
import re
import time
from collections.abc import Iterable
from typing import Any

from fastapi.testclient import TestClient

from stonechat_models import GenerateRequest
from tests.server.bodies import URL
from tests.server.storing import upload

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, url: str = URL, **fields: Any) -> dict[str, Any]:
    """A request that says its own id."""
    if url == URL:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"I am {custom_id}."}]}
    elif url == "/v1/responses":
        body = {"input": f"I am {custom_id}."}
    else:
        body = {"prompt": f"I am {custom_id}."}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body | fields}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in lines)


def said_by(request: GenerateRequest) -> str:
    """The id that the prompt of a request has."""
    found = re.search(r"I am ([\w-]+)\.", bytes(request.prompt_token_ids).decode())
    assert found is not None
    return found[1]


def create(client: TestClient, lines: Iterable[Any], url: str = URL, **fields: Any) -> Any:
    """A new batch of these lines."""
    file = upload(client, jsonl(lines))
    values = {"input_file_id": file["id"], "endpoint": url, "completion_window": "24h"}
    answer = client.post("/v1/batches", json=values | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_for(client: TestClient, batch: Any, statuses: Iterable[str] = ENDED) -> Any:
    """The batch once it has one of these statuses."""
    deadline = time.monotonic() + 60
    while True:
        batch = client.get(f"/v1/batches/{batch['id']}").json()
        if batch["status"] in statuses:
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.005)


def results(client: TestClient, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The lines of the output and of the errors by id. No id may occur twice."""
    files = []
    for name in ("output_file_id", "error_file_id"):
        content = b""
        if name in batch:
            answer = client.get(f"/v1/files/{batch[name]}/content")
            assert answer.status_code == 200
            content = answer.content
        lines = [json.loads(text) for text in content.splitlines()]
        files.append({value["custom_id"]: value for value in lines})
        assert len(files[-1]) == len(lines)
    assert not files[0].keys() & files[1].keys()
    return files[0], files[1]
