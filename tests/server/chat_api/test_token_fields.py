"""`prompt_logprobs`, `return_token_ids` and `return_tokens_as_token_ids` on chat completions."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.request import sampling_params
from tests.openai_schema import validate
from tests.server.bodies import ask, error_of, post, stream
from tests.server.completions_api.bodies import token_script
from tests.server.fake_engine import FakeEngine, text_script

SNOWMAN = "☃".encode()
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(token_script(b"a", SNOWMAN[:1], SNOWMAN[1:]))


def test_prompt_logprobs(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, prompt_logprobs=1)
    prompt = list(engine.requests[-1].prompt_token_ids)
    nothing, second, *rest = answer["prompt_logprobs"]
    assert nothing is None
    assert len(rest) == len(prompt) - 2
    assert second[str(prompt[1])] == {"logprob": -1.0, "rank": 2, "decoded_token": chr(prompt[1])}
    assert len(second) == 2
    assert engine.requests[-1].params.prompt_logprobs == 1
    zero = ask(client, prompt_logprobs=0)["prompt_logprobs"]
    assert [len(entry) for entry in zero[1:]] == [1] * (len(prompt) - 1)
    assert "prompt_logprobs" not in ask(client)
    assert engine.requests[-1].params.prompt_logprobs is None


def test_token_ids(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, return_token_ids=True, n=2)
    assert answer["prompt_token_ids"] == list(engine.requests[-1].prompt_token_ids)
    assert [choice["token_ids"] for choice in answer["choices"]] == [[2000, 2001, 2002]] * 2
    validate("CreateChatCompletionResponse", answer)
    plain = ask(client)
    assert "prompt_token_ids" not in plain
    assert "token_ids" not in plain["choices"][0]


def test_tokens_as_token_ids(client: TestClient) -> None:
    fields = {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True}
    content = ask(client, **fields)["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == [f"token_id:{2000 + i}" for i in range(3)]
    tops = [[top["token"] for top in token["top_logprobs"]] for token in content]
    assert tops == [["token_id:1000", "token_id:1001"]] * 3
    assert content[0]["bytes"] == [97]


@pytest.mark.parametrize("n", [1, 2])
def test_streams_have_the_same(client: TestClient, n: int) -> None:
    fields = {"prompt_logprobs": 2, "return_token_ids": True, "n": n}
    plain, chunks = ask(client, **fields), stream(client, **fields)
    for name in ("prompt_logprobs", "prompt_token_ids"):
        assert chunks[0][name] == plain[name]
        assert all(name not in chunk for chunk in chunks[1:])
    ids: dict[int, list[int]] = {}
    for chunk in chunks:
        validate("CreateChatCompletionStreamResponse", chunk)
        for choice in chunk["choices"]:
            ids.setdefault(choice["index"], []).extend(choice.get("token_ids", []))
    assert ids == {choice["index"]: choice["token_ids"] for choice in plain["choices"]}


def test_the_tokens_of_a_call_are_counted(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script(*CALL)
    tool = {"type": "function", "function": {"name": "f"}}
    answer = ask(client, return_token_ids=True, tools=[tool])
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["choices"][0]["token_ids"] == list(CALL.encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"return_token_ids": 1}, "return_token_ids"),
        ({"return_tokens_as_token_ids": "yes"}, "return_tokens_as_token_ids"),
    ],
)
def test_bad_values_are_named(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = error_of(post(client, **fields))
    assert (error["param"], error["code"]) in {(param, "invalid_value"), (param, "invalid_type")}


def test_a_prompt_has_a_bounded_number_of_logprobs(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tokens = ask(client)["usage"]["prompt_tokens"]
    monkeypatch.setattr(sampling_params, "MAX_PROMPT_LOGPROBS", 2 * num_tokens)
    error = error_of(post(client, prompt_logprobs=2))
    assert (error["param"], error["code"]) == ("prompt_logprobs", "request_too_large")
    assert post(client, prompt_logprobs=1, n=3).status_code == 200  # the answer has them once
