"""Other names of fields do what the fields do, and contradictions are refused."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.errors import APIError
from stonechat_server.request.other_names import with_own_names
from stonechat_server.schema.fields import FIELDS, FORM_FIELDS, OTHER_NAMES
from stonechat_server.schema.requests import ChatCompletionRequest
from tests.server.bodies import ask, body, error_of, post
from tests.server.fake_engine import FakeEngine

ON = {"enable_thinking": True, "thinking": True}
VALUES: dict[str, tuple[Any, Any]] = {
    "repetition_penalty": (1.5, 1.25),
    "max_tokens": (5, -1),
    "min_tokens": (3, 4),
    "stop": (["a"], "b"),
    "seed": (7, 8),
    "thinking_budget": (9, 10),
}


def translated(**fields: Any) -> ChatCompletionRequest:
    return with_own_names(ChatCompletionRequest.model_validate(body(**fields)))


@pytest.mark.parametrize("name", sorted(n for n in OTHER_NAMES if FIELDS[n].alias_of))
def test_a_name_sets_its_field(client: TestClient, name: str) -> None:
    field = FIELDS[name].alias_of
    value, other = VALUES[field]
    assert getattr(translated(**{name: value}), field) == value
    assert getattr(translated(**{name: value, field: value}), field) == value
    assert getattr(translated(**{name: None, field: value}), field) == value
    error = error_of(post(client, **{name: value, field: other}))
    assert error["param"] == name
    assert f"'{field}'" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"repeat_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"n_predict": 5}, "max_tokens", 5),
        ({"max_tokens": -1}, "max_tokens", 4044),
        ({"max_completion_tokens": -1}, "max_tokens", 4044),
        ({"max_completion_tokens": -1, "max_tokens": 5}, "max_tokens", 4044),
        ({"n_predict": -1, "min_tokens": 9}, "max_tokens", 4044),
        ({"random_seed": 3}, "seed", 3),
    ],
)
def test_names_and_limits_reach_the_engine(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str, expected: object
) -> None:
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    assert "x-ignored-params" not in response.headers
    assert getattr(engine.requests[-1].params, param) == expected


@pytest.mark.parametrize(
    ("fields", "field", "expected"),
    [
        ({"reasoning": {"effort": "low"}}, "reasoning_effort", "low"),
        ({"reasoning": {"max_tokens": 7}}, "thinking_budget", 7),
        ({"reasoning": {"enabled": False}}, "reasoning_effort", "none"),
        ({"reasoning": {"enabled": True}}, "chat_template_kwargs", ON),
        ({"thinking": {"type": "disabled"}}, "reasoning_effort", "none"),
        ({"thinking": {"type": "enabled"}}, "chat_template_kwargs", ON),
        ({"thinking": {"type": "enabled", "budget_tokens": 7}}, "thinking_budget", 7),
        ({"thinking": {"type": "adaptive"}}, "reasoning_effort", None),
        ({"enable_thinking": False}, "reasoning_effort", "none"),
        ({"enable_thinking": True}, "chat_template_kwargs", ON),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"thinking": "x", "a": 1}},
            "chat_template_kwargs",
            {"enable_thinking": True, "thinking": "x", "a": 1},
        ),
        ({"think": False}, "reasoning_effort", "none"),
        ({"think": True}, "chat_template_kwargs", ON),
        ({"think": "high"}, "reasoning_effort", "high"),
        ({"think": False, "reasoning_effort": "none"}, "reasoning_effort", "none"),
        ({"thinking_token_budget": -1}, "thinking_budget", None),
        ({"reasoning": None, "thinking": None, "think": None}, "reasoning_effort", None),
    ],
)
def test_switches_of_reasoning(fields: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(translated(**fields), field) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
        ({"enable_thinking": False, "reasoning_effort": "high"}, "enable_thinking"),
        ({"enable_thinking": True, "reasoning_effort": "none"}, "reasoning_effort"),
        ({"enable_thinking": True, "think": False}, "think"),
        ({"reasoning": {"enabled": True, "effort": "none"}}, "reasoning.effort"),
        ({"n_predict": 5, "num_predict": 6}, "num_predict"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(APIError) as error_info:
        translated(**fields)
    assert (error_info.value.status, error_info.value.param) == (400, param)


def test_the_table_names_every_other_name() -> None:
    names = {name for name, note in FIELDS.items() if note.alias_of}
    assert names <= OTHER_NAMES | FORM_FIELDS
    for name in names:
        target = FIELDS[name].alias_of.partition(".")[0]
        assert target in FIELDS, name
        assert not FIELDS[target].alias_of


def test_a_plain_request_stays_as_it_is(client: TestClient) -> None:
    assert ask(client)["choices"]
    assert OTHER_NAMES.isdisjoint(ChatCompletionRequest.model_validate(body()).model_fields_set)


@pytest.mark.parametrize(
    ("url", "fields", "path"),
    [
        ("chat/completions", {"thinking_token_budget": 5}, "thinking_token_budget"),
        ("chat/completions", {"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens"),
        (
            "chat/completions",
            {"thinking": {"type": "enabled", "budget_tokens": 5}},
            "thinking.budget_tokens",
        ),
        ("chat/completions", {"max_new_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ("chat/completions", {"max_tokens": 5, "min_new_tokens": 6}, "min_new_tokens"),
        ("completions", {"n_predict": 5, "min_new_tokens": 6}, "min_new_tokens"),
    ],
)
def test_errors_name_what_the_client_sent(
    client: TestClient, url: str, fields: dict[str, Any], path: str
) -> None:
    given = {"prompt": "Hi"} if url == "completions" else {"messages": body()["messages"]}
    response = client.post(f"/v1/{url}", json={"model": "tiny-test", **given, **fields})
    error = error_of(response)
    assert error["param"] == path
    assert path in error["message"]
