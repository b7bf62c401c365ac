"""The table of request fields is complete and true."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.schema.fields import FIELDS, FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.bodies import ask, error_of, post
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


@pytest.mark.parametrize("name", list(FIELDS))
def test_null_asks_for_nothing(client: TestClient, name: str) -> None:
    response = post(client, **{name: None})
    assert response.status_code == (400 if name in ("model", "messages") else 200)
    assert "x-ignored-params" not in response.headers


@pytest.mark.parametrize("name", names(FieldStatus.REJECTED) + names(FieldStatus.NO_EFFECT))
def test_neutral_values_are_accepted(client: TestClient, name: str) -> None:
    for value in FIELDS[name].neutral:
        response = post(client, **{name: value})
        assert response.status_code == 200, response.text
        assert "x-ignored-params" not in response.headers


@pytest.mark.parametrize("name", names(FieldStatus.NO_EFFECT))
def test_fields_without_effect_are_named(new_client: ClientFactory, name: str) -> None:
    client = new_client(strict_params=True)
    response = post(client, **{name: SAMPLES[name]})
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == name


def test_unknown_fields_are_named(client: TestClient) -> None:
    response = post(client, foo=1, guided_json={}, stream=True, stream_options={"bar": 1})
    assert response.status_code == 200
    assert response.headers["x-ignored-params"] == "foo, guided_json, stream_options.bar"


def test_names_of_unknown_fields_cannot_break_the_header(client: TestClient) -> None:
    response = post(client, **{"a\r\nset-cookie: x": 1, "é, b": 2})
    assert response.headers["x-ignored-params"] == "a%0D%0Aset-cookie%3A%20x, %C3%A9%2C%20b"
    response = post(client, **{f"field{i}": 1 for i in range(1000)})
    assert len(response.headers["x-ignored-params"]) < 1100
    assert response.headers["x-ignored-params"].endswith(", ...")


def test_strict_params_refuses_unknown_fields(new_client: ClientFactory) -> None:
    client = new_client(strict_params=True)
    response = post(client, foo=1)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == ("foo", "unknown_parameter")
    ask(client)
