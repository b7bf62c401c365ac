"""The prompt of a chat request, as the engine would get it."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.server.bodies import ask, body, error_of, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine

URL = "/v1/chat/completions/render"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "strict": True,
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
HI = [{"role": "user", "content": "é"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def rendered(client: TestClient, **fields: Any) -> Any:
    response = client.post(URL, json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.3, "n": 2, "stop": ["x"], "max_tokens": 7, "seed": 5, "top_k": 9},
        {"messages": [{"role": "system", "content": "Be brief."}, *HI]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "part"}]}]},
        {"tools": [TOOL], "tool_choice": "required"},
        {"structured_outputs": {"json": SCHEMA}},
        {"add_generation_prompt": False},
        {"functions": [TOOL["function"]]},
        {"n_predict": 3, "logit_bias": {"5": -1}, "logprobs": True, "top_logprobs": 2},
    ],
)  # fmt: skip
def test_it_is_what_the_engine_gets(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    answer = rendered(client, **fields)
    assert engine.requests == []
    client.post("/v1/chat/completions", json=body(**fields))
    request = engine.requests[-1]
    params, sampling = request.params, answer["sampling_params"]
    assert answer["token_ids"] == list(request.prompt_token_ids)
    assert answer["prompt"] == engine.prompt
    same = (
        *("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens"),
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "ignore_eos"),
        *("include_stop_str_in_output", "skip_special_tokens", "prompt_logprobs"),
    )
    for name in same:
        assert sampling[name] == getattr(params, name), name
    assert sampling["logprobs"] == params.top_logprobs
    assert sampling["stop"] == list(params.stop.strings if params.stop else ())
    assert sampling["stop_token_ids"] == list(params.stop_token_ids)
    assert sampling["logit_bias"] == {str(k): v for k, v in params.logit_bias.items()}
    assert sampling["grammar"] == (params.grammar.kind if params.grammar else None)


def test_the_rest_of_the_request_is_shown(client: TestClient) -> None:
    answer = rendered(client, stream=True, priority=3, cache_salt="s")
    assert (answer["stream"], answer["priority"], answer["cache_salt"]) == (True, 3, "s")
    assert answer["model"] == "tiny-test"
    assert answer["request_id"].startswith("chatcmpl-")
    assert answer["max_model_len"] == 4096


def test_tokenize_gives_the_same_tokens(client: TestClient) -> None:
    fields = {"tools": [TOOL], "chat_template_kwargs": {"a": 1}}
    tokens = client.post("/tokenize", json=body(**fields)).json()["tokens"]
    assert tokens == rendered(client, **fields)["token_ids"]


def test_guarded_texts_show_no_marks(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.tokenizer.special_ids = frozenset({1})
    engine.tokenizer.added_tokens = frozenset({"<|im_end|>"})
    client = new_client(special_tokens_as_text=True)
    fields = {"messages": [{"role": "user", "content": "a<|im_end|>b"}]}
    answer = rendered(client, **fields)
    ask(client, **fields)
    assert answer["token_ids"] == list(engine.requests[-1].prompt_token_ids)
    assert answer["prompt"] == ("<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 0},
        {"messages": []},
        {"tool_choice": "required"},
        {"response_format": {"type": "json_schema"}},
        {"max_tokens": 2, "min_tokens": 3},
        {"audio": {"voice": "x"}},
        {"chat_template": "{{ 1 }}"},
        {"model": "gpt-9"},
        {"messages": [{"role": "user", "content": "x" * 5000}]},
    ],
)
def test_the_errors_are_those_of_the_chat(client: TestClient, fields: dict[str, Any]) -> None:
    chat, render = post(client, **fields), client.post(URL, json=body(**fields))
    assert (render.status_code, error_of(render)) == (chat.status_code, error_of(chat))


def test_ignored_fields_are_named(client: TestClient) -> None:
    response = client.post(URL, json=body(colour="red", store=True))
    assert response.headers["x-ignored-params"] == "colour, store"
