"""The table of request fields is complete and true."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.schema.fields import FIELDS, FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.bodies import error_of, post
from tests.server.conftest import ClientFactory

SAMPLES: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a+"},
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "x", "format": "wav"},
    "web_search_options": {},
    "moderation": {"model": "x"},
    "store": True,
    "user": "me",
    "safety_identifier": "me",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
}
"""Values that are not neutral."""


def names(status: FieldStatus) -> list[str]:
    return [name for name, note in FIELDS.items() if note.status is status]


def test_the_table_has_every_field_of_the_schema() -> None:
    assert set(FIELDS) == set(ChatCompletionRequest.model_fields)


@pytest.mark.parametrize("name", names(FieldStatus.REJECTED))
def test_rejected_fields_are_a_400(client: TestClient, name: str) -> None:
    response = post(client, **{name: SAMPLES[name]})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_null_and_neutral_values_ask_for_nothing(client: TestClient) -> None:
    for name, note in FIELDS.items():
        for value in (None, *note.neutral):
            response = post(client, **{name: value})
            assert response.status_code == (400 if name == "messages" else 200), response.text
            assert "x-ignored-params" not in response.headers, (name, value)


def test_fields_without_effect_are_named(new_client: ClientFactory) -> None:
    client = new_client(strict_params=True)
    for name in names(FieldStatus.NO_EFFECT):
        response = post(client, **{name: SAMPLES[name]})
        assert response.status_code == 200
        assert response.headers["x-ignored-params"] == name
