"""The fields of answers and streams, and the request that reaches the engine."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from stonechat_models import FinishReason, GenerateRequest, LogprobEntry, StopRules, TopLogprob
from tests.server.bodies import ask, body, post, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output, text_script

TEXT = "Hello wörld 👋"


def test_plain_answer_has_exactly_the_keys_of_the_contract(client: TestClient) -> None:
    answer = ask(client)
    assert set(answer) == {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "system_fingerprint",
    }
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    ChatCompletion.model_validate(answer, strict=True)


def test_usage_counts_the_prompt_once_and_sums_choices(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.script = text_script("a", "b", cached=32, written=16)
    usage = ask(client, n=3)["usage"]
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": 6,
        "total_tokens": num_prompt + 6,
        "prompt_tokens_details": {
            "cached_tokens": 32,
            "cache_write_tokens": 16,
            "audio_tokens": 0,
            "image_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
            "audio_tokens": 0,
        },
        "cache_creation_input_tokens": 16,
        "cache_read_input_tokens": 32,
    }


def test_stream_begins_with_roles_and_ends_with_reasons(client: TestClient) -> None:
    chunks = stream(client)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert [d["content"] for d in deltas[1:-1]] == ["Hello", " wörld", " 👋"]
    assert deltas[-1] == {}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * 4 + ["stop"]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    for chunk in chunks:
        assert set(chunk) == {
            "id",
            "object",
            "created",
            "model",
            "system_fingerprint",
            "choices",
        }
        assert set(chunk["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
        ChatCompletionChunk.model_validate(chunk, strict=True)


def test_include_usage_adds_a_last_chunk_and_null_elsewhere(client: TestClient) -> None:
    *others, last = stream(client, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == ask(client)["usage"]


def test_continuous_usage_counts_up(client: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [c["usage"]["completion_tokens"] for c in stream(client, stream_options=options)]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_obfuscation_hides_the_length_of_the_text(client: TestClient) -> None:
    chunks = stream(client, stream_options={"include_obfuscation": True})
    for chunk in chunks:
        text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        assert (len(text) + len(chunk["obfuscation"])) % 16 == 0
        assert "usage" not in chunk


def test_the_index_identifies_the_choices_of_a_stream(client: TestClient) -> None:
    chunks = stream(client, n=3)
    texts = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == [TEXT] * 3


def entry(text: str, value: float) -> LogprobEntry:
    top = (TopLogprob(1, text, text.encode(), value), TopLogprob(2, "é", "é".encode()[:1], -9.0))
    return LogprobEntry(1, text, text.encode(), value, top)


def logprob_script(request: GenerateRequest) -> list[Any]:
    """The text of the second token is held back and comes with the third."""
    return [
        output(request, delta("a", logprobs=(entry("a", -0.5),))),
        output(request, delta("", logprobs=(entry("b", -1.5),))),
        output(request, delta("bc", logprobs=(entry("c", -2.5),))),
        output(request, delta("", finish=FinishReason.LENGTH, num_tokens=0), finished=True),
    ]


def test_logprobs_come_with_the_text_or_soon_after(client: TestClient, engine: FakeEngine) -> None:
    engine.script = logprob_script
    plain = ask(client, logprobs=True, top_logprobs=2)["choices"][0]
    tokens = plain["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ["a", "b", "c"]
    assert tokens[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "é", "logprob": -9.0, "bytes": [195]},
        ],
    }
    assert plain["logprobs"]["refusal"] is None
    assert plain["finish_reason"] == "length"
    streamed = [
        [token["token"] for token in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
        for c in stream(client, logprobs=True, top_logprobs=2)
    ]
    assert streamed == [[], ["a"], ["b", "c"], []]


def test_empty_answer_is_empty_text(client: TestClient, engine: FakeEngine) -> None:
    engine.script = text_script("")
    assert ask(client)["choices"][0]["message"]["content"] == ""


def test_ids_are_unique(client: TestClient) -> None:
    assert len({ask(client)["id"] for _ in range(20)}) == 20


def test_metadata_and_tier_are_echoed(client: TestClient) -> None:
    answer = ask(client, metadata={"a": "b"}, service_tier="auto")
    assert answer["metadata"] == {"a": "b"}
    assert answer["service_tier"] == "default"


def test_both_paths_answer(client: TestClient) -> None:
    assert client.post("/chat/completions", json=body()).status_code == 200


def test_the_models_have_the_served_names(new_client: ClientFactory, engine: FakeEngine) -> None:
    client = new_client(served_model_name=["one", "org/two"])
    assert ask(client, model="org/two")["model"] == "org/two"
    model_list = client.get("/v1/models").json()
    assert [card["id"] for card in model_list["data"]] == ["one", "org/two"]
    assert client.get("/v1/models/org/two").json()["root"] == "tiny-test"
    for path in ("/models", "/models/org/two", "/models/three"):
        without, with_version = client.get(path), client.get("/v1" + path)
        assert (without.status_code, without.json()) == (
            with_version.status_code,
            with_version.json(),
        )
    assert post(client).status_code == 404


@pytest.mark.parametrize(
    ("fields", "attribute", "expected"),
    [
        ({}, "temperature", 1.0),
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 5}, "top_k", 5),
        ({"min_p": 0.1}, "min_p", 0.1),
        ({"seed": -(2**63)}, "seed", -(2**63)),
        ({"n": 128}, "n", 128),
        ({"stop": "x"}, "stop", StopRules(strings=("x",))),
        ({"stop": ["x", "y"]}, "stop", StopRules(strings=("x", "y"))),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 10**9}, "max_tokens", 4096 - 52),
        ({}, "max_tokens", 4096 - 52),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"logit_bias": {"5": -100, "7": None}}, "logit_bias", {5: -100.0}),
        ({}, "top_logprobs", None),
        ({"logprobs": True}, "top_logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "top_logprobs", 20),
        ({"frequency_penalty": -2, "presence_penalty": 2}, "frequency_penalty", -2.0),
        ({"presence_penalty": 2}, "presence_penalty", 2.0),
        ({"repetition_penalty": 1.5}, "repetition_penalty", 1.5),
        ({"stop_token_ids": [1, 2]}, "stop_token_ids", (1, 2)),
        ({"ignore_eos": True}, "ignore_eos", True),
        ({"skip_special_tokens": False}, "skip_special_tokens", False),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output", True),
    ],
)
def test_sampling_fields_reach_the_engine(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], attribute: str, expected: object
) -> None:
    ask(client, **fields)
    assert getattr(engine.requests[-1].params, attribute) == expected


def test_priority_and_salt_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    ask(client, priority=3, cache_salt="mine")
    assert engine.requests[-1].priority == 3
    assert engine.requests[-1].cache_salt.endswith("mine")
