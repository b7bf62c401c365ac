"""`/v1/completions` over HTTP: shapes, streams, and what each field does."""

import threading
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types import Completion

from stonechat_models import FinishReason, GenerateRequest
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.app import create_app
from stonechat_server.completions_api import writer
from stonechat_server.settings import Settings
from tests.openai_schema import validate
from tests.server.completions_api.bodies import (
    URL,
    BosTokenizer,
    ask,
    fold,
    post,
    stream,
    token_script,
)
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info, output, text_script

SNOWMAN = "☃".encode()
TOKENS = (b" a", SNOWMAN[:1], SNOWMAN[1:], b"b", "é".encode())
TEXT = " a☃bé"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(token_script(*TOKENS), tokenizer=BosTokenizer())


def test_the_answer_has_the_published_shape(client: TestClient) -> None:
    answer = ask(client, logprobs=2)
    validate("CreateCompletionResponse", answer)
    completion = Completion.model_validate(answer, strict=True)
    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert completion.model == "tiny-test"
    assert completion.system_fingerprint == answer["system_fingerprint"]
    (choice,) = completion.choices
    assert (choice.text, choice.index, choice.finish_reason) == (TEXT, 0, "stop")
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == 4  # BOS and three bytes
    assert completion.usage.completion_tokens == len(TOKENS)
    assert completion.usage.total_tokens == 4 + len(TOKENS)
    assert set(answer["choices"][0]) == {"text", "index", "logprobs", "finish_reason"}


def test_chunks_have_the_same_shape(client: TestClient) -> None:
    chunks = stream(client, logprobs=2, stream_options={"include_usage": True})
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # null until the last
        validate("CreateCompletionResponse", {k: v for k, v in chunk.items() if v is not None})
    assert [len(chunk["choices"]) for chunk in chunks] == [1] * (len(chunks) - 1) + [0]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["usage"] == ask(client)["usage"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": 0},
        {"logprobs": 3},
        {"echo": True},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"echo": True, "logprobs": 1, "prompt": [[65, 0, 66], [67]]},
        {"n": 3, "logprobs": 1},
        {"prompt": ["a", "bc"], "n": 2, "echo": True},
        {"prompt_logprobs": 2},
        {"prompt_logprobs": 2, "echo": True, "logprobs": 3},
        {"return_token_ids": True, "prompt": ["a", "b"]},
        {"return_tokens_as_token_ids": True, "echo": True, "logprobs": 2},
        {"max_tokens": 0},
    ],
)
def test_streaming_equals_plain(client: TestClient, fields: dict[str, Any]) -> None:
    plain, chunks = ask(client, **fields), stream(client, **fields)
    assert fold(chunks) == plain["choices"]
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize("finish", [FinishReason.STOP, FinishReason.LENGTH])
def test_finish_reasons(client: TestClient, engine: FakeEngine, finish: FinishReason) -> None:
    engine.script = token_script(b"a", finish=finish)
    assert ask(client)["choices"][0]["finish_reason"] == finish.name.lower()


def test_logprobs(client: TestClient) -> None:
    logprobs = ask(client, logprobs=2)["choices"][0]["logprobs"]
    assert logprobs["tokens"] == [" a", "bytes:\\xe2", "bytes:\\x98\\x83", "b", "é"]
    assert logprobs["text_offset"] == [0, 2, 2, 3, 4]
    assert logprobs["token_logprobs"] == [-0.5, -1.5, -2.5, -3.5, -4.5]
    best = {"x": -0.25, "bytes:\\xc3": -1.25}
    assert logprobs["top_logprobs"][0] == best | {" a": -0.5}
    assert list(logprobs["top_logprobs"][1]) == ["x", "bytes:\\xc3", "bytes:\\xe2"]
    only = ask(client, logprobs=0)["choices"][0]["logprobs"]
    assert only["top_logprobs"][:2] == [{" a": -0.5}, {"bytes:\\xe2": -1.5}]
    assert ask(client)["choices"][0]["logprobs"] is None


def test_echo_puts_the_prompt_first(client: TestClient) -> None:
    answer = ask(client, prompt="Sa<s>ÿ", echo=True, logprobs=1)
    (choice,) = answer["choices"]
    text, logprobs = choice["text"], choice["logprobs"]
    assert text == "Sa<s>ÿ" + TEXT
    assert logprobs["tokens"][:6] == ["<s>", "S", "a", "<s>", "bytes:\\xc3", "bytes:\\xbf"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 5, 5, 6, 8, 8, 9, 10]
    assert logprobs["token_logprobs"][:4] == [None, -1.0, -1.5, -0.5]
    assert logprobs["top_logprobs"][:2] == [None, {"T": -0.5, "S": -1.0}]
    for token, offset in zip(logprobs["tokens"][1:], logprobs["text_offset"][1:], strict=True):
        if not token.startswith("bytes:"):
            assert text[offset:].startswith(token)
    sizes = {len(values) for values in logprobs.values()}
    assert sizes == {answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]}


def test_echo_of_token_ids_shows_special_tokens(client: TestClient) -> None:
    choice = ask(client, prompt=[0, 65, 0], echo=True, logprobs=0)["choices"][0]
    assert choice["text"] == "<s>A<s>" + TEXT
    assert choice["logprobs"]["tokens"][:3] == ["<s>", "A", "<s>"]
    assert choice["logprobs"]["text_offset"][:4] == [0, 3, 4, 7]


def test_echo_without_tokens_scores_the_prompt(client: TestClient, engine: FakeEngine) -> None:
    answer = ask(client, prompt="abc", echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.5, -0.5]
    assert answer["usage"]["completion_tokens"] == 0
    params = engine.requests[-1].params
    assert (params.max_tokens, params.prompt_logprobs, params.top_logprobs) == (0, 1, 1)


def test_the_first_chunks_have_the_prompt(client: TestClient) -> None:
    chunks = stream(client, prompt=["ab", "c"], echo=True)
    first = {}
    for chunk in chunks:
        choice = chunk["choices"][0]
        first.setdefault(choice["index"], choice["text"])
    assert first == {0: "ab", 1: "c"}


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab"], ["ab"]),
        (["a", "b", "a"], ["a", "b", "a"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
def test_choices_of_the_first_prompt_come_first(
    client: TestClient, prompt: object, texts: list[str]
) -> None:
    answer = ask(client, prompt=prompt, n=2, echo=True)
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == list(range(2 * len(texts)))
    wanted = [text + TEXT for text in texts for _ in range(2)]
    assert [choice["text"] for choice in choices] == wanted
    assert answer["usage"]["completion_tokens"] == 2 * len(texts) * len(TOKENS)


def test_best_of_returns_the_likeliest(client: TestClient, engine: FakeEngine) -> None:
    everything = ask(client, prompt=["a", "b"], n=4, logprobs=1)["choices"]
    answer = ask(client, prompt=["a", "b"], best_of=4, n=2, logprobs=1, echo=True)
    assert engine.requests[-1].params.n == 4
    choices = answer["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    for choice, other in zip(choices, [0, 1, 4, 5], strict=True):
        expected = everything[other]["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["token_logprobs"][-len(TOKENS) :] == expected
    assert answer["usage"]["completion_tokens"] == 8 * len(TOKENS)


def test_best_of_needs_no_logprobs(client: TestClient, engine: FakeEngine) -> None:
    (choice,) = ask(client, best_of=3)["choices"]
    assert choice["logprobs"] is None
    assert engine.requests[-1].params.top_logprobs == 0
    ask(client, best_of=2, n=2)
    assert engine.requests[-1].params.top_logprobs is None
    assert len(fold(stream(client, best_of=2, n=2))) == 2


def test_prompt_logprobs(client: TestClient) -> None:
    (choice,) = ask(client, prompt="ab", prompt_logprobs=1)["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {
            "97": {"logprob": -1.0, "rank": 2, "decoded_token": "a"},
            "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
        },
        {
            "98": {"logprob": -1.5, "rank": 3, "decoded_token": "b"},
            "99": {"logprob": -0.5, "rank": 1, "decoded_token": "c"},
        },
    ]
    assert choice["logprobs"] is None
    both = ask(client, prompt="ab", prompt_logprobs=1, echo=True, logprobs=3)["choices"][0]
    assert both["prompt_logprobs"] == choice["prompt_logprobs"]
    assert len(both["logprobs"]["top_logprobs"][1]) == 3


def test_token_ids(client: TestClient) -> None:
    (choice,) = ask(client, prompt="ab", return_token_ids=True)["choices"]
    assert choice["prompt_token_ids"] == [0, 97, 98]
    assert choice["token_ids"] == [2000, 2001, 2002, 2003, 2004]
    (choice,) = ask(client, logprobs=1, return_tokens_as_token_ids=True)["choices"]
    assert choice["logprobs"]["tokens"][:2] == ["token_id:2000", "token_id:2001"]
    assert choice["logprobs"]["top_logprobs"][0] == {"token_id:1000": -0.25, "token_id:2000": -0.5}


def test_parameters_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    ask(client)
    params = engine.requests[-1].params
    assert (params.max_tokens, params.n, params.continues_text) == (16, 1, True)
    ask(client, max_tokens=5, min_tokens=2, stop=["x", "y"], seed=3, logit_bias={"5": 1}, top_k=4)
    params = engine.requests[-1].params
    assert (params.max_tokens, params.min_tokens, params.seed, params.top_k) == (5, 2, 3, 4)
    assert params.logit_bias == {5: 1}
    assert engine.stop_rules.strings == ("x", "y")
    ask(client, n_predict=-1, cache_salt="s", priority=2)
    assert engine.requests[-1].params.max_tokens == 4096 - 4
    assert (engine.requests[-1].cache_salt, engine.requests[-1].priority) == ("s", 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
        {"structured_outputs": {"regex": "[0-9]+"}},
        {"guided_choice": ["a", "b"]},
    ],
)
def test_forms_constrain_the_whole_text(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    ask(client, **fields)
    params = engine.requests[-1].params
    assert params.grammar is not None
    assert params.reasoning is None
    assert engine.requests[-1].prompt_token_ids == [0, *b"Say"]


def test_tags_are_text(client: TestClient, engine: FakeEngine) -> None:
    """No parser reads reasoning or calls."""
    text = '<think>x</think><tool_call>{"name": "f", "arguments": {}}</tool_call>'
    engine.tokenizer.chat_template = "{# <think></think> <tool_call> #}"
    engine.script = text_script(*text)
    assert ask(client)["choices"][0]["text"] == text


def test_usage_and_obfuscation_of_each_chunk(client: TestClient) -> None:
    options = {"continuous_usage_stats": True, "include_obfuscation": True}
    chunks = stream(client, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(TOKENS)
    for chunk in chunks:
        size = len(chunk["choices"][0]["text"]) if chunk["choices"] else 0
        assert len(chunk["obfuscation"]) + size == 16


def test_the_openai_client(client: TestClient) -> None:
    with openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="x", http_client=client) as api:
        answer = api.completions.create(model="tiny-test", prompt="Say", max_tokens=7, logprobs=1)
        assert answer.choices[0].text == TEXT
        chunks = api.completions.create(model="tiny-test", prompt=["a", "b"], stream=True)
        texts = ["", ""]
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [TEXT, TEXT]


def test_the_path_without_a_version(client: TestClient) -> None:
    assert client.post("/completions", json={"prompt": "a"}).status_code == 200
    assert client.get(URL).status_code == 405


def test_metadata_and_ignored_fields(new_client: ClientFactory) -> None:
    response = post(new_client(), metadata={"k": "v"}, store=True, best_off=2, service_tier="auto")
    assert response.headers["x-ignored-params"] == "best_off, store"
    assert response.json()["metadata"] == {"k": "v"}
    assert response.json()["service_tier"] == "default"


def test_a_prompt_is_scored_outside_the_event_loop(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    make = writer.prompt_logprobs_body

    def recorded(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return make(*args)

    def script(request: GenerateRequest) -> list[Any]:
        threads.append(threading.get_ident())
        return token_script(*TOKENS)(request)

    monkeypatch.setattr(writer, "prompt_logprobs_body", recorded)
    engine.script = script
    ask(client, prompt_logprobs=1, n=2)
    loop, worker = threads
    assert loop != worker


def test_the_ledger_counts_the_prompts_that_began(engine: FakeEngine) -> None:
    def script(request: GenerateRequest) -> list[Any]:
        if request.prompt_token_ids[-1] == ord("c"):
            return [output(request, error="step failed")]
        return token_script(*TOKENS)(request)

    engine.script, engine.model = script, model_info(max_num_seqs=1)
    records: list[FinishedRequest] = []
    app = create_app(Settings(), engine, sinks=[records.append])
    with TestClient(app, "http://localhost") as client:
        assert post(client, prompt=["a", "bbc", "d" * 100]).status_code == 500
        assert post(client, prompt=["a", "bbb"]).status_code == 200
    assert [record.num_prompt_tokens for record in records] == [6, 6]  # each has a BOS token
