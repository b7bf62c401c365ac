"""The table of the fields of text completions is complete and true."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.completions_api import endpoint
from stonechat_server.completions_api.fields import COMPLETION_FIELDS
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.request import sampling_params
from stonechat_server.schema.fields import FieldStatus
from stonechat_server.schema.sampling_fields import SamplingFields
from tests.server.bodies import error_of
from tests.server.completions_api.bodies import ask, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info

SAMPLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "top_logprobs": 2,
    "store": True,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "30m"},
    "prompt_cache_retention": "24h",
}
"""Values that are not neutral."""


def names(status: FieldStatus) -> list[str]:
    return [name for name, note in COMPLETION_FIELDS.items() if note.status is status]


def test_the_table_has_every_field_of_the_schema() -> None:
    assert set(COMPLETION_FIELDS) == set(CompletionRequest.model_fields)
    assert set(SamplingFields.model_fields) < set(COMPLETION_FIELDS)


@pytest.mark.parametrize("name", names(FieldStatus.REJECTED))
def test_rejected_fields_are_a_400(client: TestClient, name: str) -> None:
    error = error_of(post(client, **{name: SAMPLES[name]}))
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")


def test_null_and_neutral_values_ask_for_nothing(client: TestClient) -> None:
    for name, note in COMPLETION_FIELDS.items():
        for value in (None, *note.neutral):
            response = post(client, **{name: value})
            assert response.status_code == (400 if name == "prompt" else 200), response.text
            assert "x-ignored-params" not in response.headers, (name, value)


def test_fields_without_effect_are_named(new_client: ClientFactory) -> None:
    client = new_client(strict_params=True)
    for name in names(FieldStatus.NO_EFFECT):
        response = post(client, **{name: SAMPLES[name]})
        assert response.status_code == 200
        assert response.headers["x-ignored-params"] == name


def test_unknown_fields_are_named_or_refused(client: TestClient, new_client: ClientFactory) -> None:
    assert post(client, reasoning_effort="low").headers["x-ignored-params"] == "reasoning_effort"
    error = error_of(post(new_client(strict_params=True), reasoning_effort="low"))
    assert (error["param"], error["code"]) == ("reasoning_effort", "unknown_parameter")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"suffix": 1}, "suffix"),
        ({"suffix": "b"}, "suffix"),
        ({"suffix": "b", "echo": True}, "echo"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [255, 256]}, "prompt[1]"),
        ({"prompt": [[1], [2, 10**30]]}, "prompt[1][1]"),
        ({"prompt": ["a"] * 1025}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 128}, "prompt"),
        ({"prompt": "a" * 5000}, "prompt"),
        ({"prompt": ["a", "a" * 5000]}, "prompt[1]"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"max_tokens": 3, "n_predict": 4}, "n_predict"),
        ({"stop_token_ids": [256]}, "stop_token_ids[0]"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"model": "gpt-9"}, "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_names_the_field(
    client: TestClient, fields: dict[str, Any], param: str, stream: bool
) -> None:
    response = post(client, **({"stream": stream} | fields))
    assert 400 <= response.status_code < 500
    error = error_of(response)
    assert error["param"] == param, error
    assert "messages" not in error["message"]


def test_bounds_on_what_one_request_may_ask_for(new_client: ClientFactory) -> None:
    client = new_client(max_completion_total=100)
    for fields, param in [
        ({"n": 2, "max_tokens": 51}, "n"),
        ({"best_of": 2, "max_tokens": 51}, "best_of"),
        ({"best_of": 2, "n": 2, "max_tokens": 51}, "n"),
        ({"prompt": ["a", "b"], "max_tokens": 51}, "prompt"),
        ({"logprobs": 20, "max_tokens": 21}, "logprobs"),
    ]:
        error = error_of(post(client, **fields))
        assert (error["param"], error["code"]) == (param, "request_too_large")
    assert post(client, prompt=["a", "b"], max_tokens=50).status_code == 200
    error = error_of(post(client, n=2, max_tokens=51))
    assert "lower max_tokens to 50" in error["message"]


def test_only_what_may_be_streamed_is_to_be_streamed(new_client: ClientFactory) -> None:
    client = new_client(max_completion_total=100)
    error = error_of(post(client, logprobs=20, max_tokens=21))
    assert error["message"].endswith("lower max_tokens to 20, or stream.")
    error = error_of(post(client, logprobs=20, max_tokens=21, best_of=2))
    assert error["message"].endswith("lower max_tokens to 10.")


@pytest.mark.parametrize(
    "name", ["max_tokens", "n_predict", "num_predict", "max_new_tokens", "max_output_tokens"]
)
def test_zero_tokens_have_many_names(client: TestClient, name: str) -> None:
    answer = ask(client, **{name: 0})
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"echo": True, "logprobs": 1}, "logprobs"),
    ],
)
def test_the_logprobs_of_all_prompts_are_bounded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], param: str
) -> None:
    monkeypatch.setattr(sampling_params, "MAX_PROMPT_LOGPROBS", 2 * 108)
    prompts = ["a" * 100, *"abcdefgh"]  # as many tokens as characters
    assert post(client, prompt=prompts, **fields).status_code == 200
    assert post(client, prompt="a" * 27, n=4, **fields).status_code == 200
    for more in ({"prompt": [*prompts, "b"]}, {"prompt": "a" * 28, "n": 4}):
        error = error_of(post(client, **fields, **more))
        assert (error["param"], error["code"]) == (param, "request_too_large")
    error = error_of(post(client, prompt="a" * 28, best_of=4, **fields))
    assert error["code"] == "request_too_large"


def test_prompts_of_very_unequal_length_may_have_logprobs(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    engine.model = model_info(max_model_len=8192)
    prompts = ["a" * 8000, *["b"] * 300]
    assert post(new_client(), prompt=prompts, echo=True, logprobs=1).status_code == 200


@pytest.mark.parametrize("fields", [{"echo": True}, {"return_token_ids": True}])
def test_what_choices_repeat_of_their_prompt_is_bounded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    monkeypatch.setattr(endpoint, "MAX_REPEATED", 40)
    assert post(client, prompt=["a" * 5, "b" * 5], n=4, **fields).status_code == 200
    assert post(client, prompt="a" * 41, **fields).status_code == 200  # once, as it was sent
    assert post(client, prompt="a" * 41, n=4).status_code == 200
    for name in ("n", "best_of"):
        error = error_of(post(client, prompt=["a" * 5, "b" * 6], **fields, **{name: 4}))
        assert (error["param"], error["code"]) == (name, "request_too_large")
