"""Runs the official client on a real model. The client's own types parse every answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from .conftest import LiveServer

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Tell me about the sea, with emoji 🌊."},
]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


class Asker:
    """Requests short answers, plain or as a stream."""

    def __init__(self, client: openai.OpenAI, model: str) -> None:
        self.client = client
        self.fields: dict[str, Any] = {
            "model": model,
            "messages": MESSAGES,
            "max_completion_tokens": 24,
            "seed": 11,
        }

    def plain(self, **fields: Any) -> ChatCompletion:
        answer = self.client.chat.completions.create(**(self.fields | fields))
        ChatCompletion.model_validate(answer.model_dump(), strict=True)
        return answer

    def stream(self, **fields: Any) -> list[ChatCompletionChunk]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(self.client.chat.completions.create(**(self.fields | options | fields)))
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        return chunks


@pytest.fixture
def ask(client: openai.OpenAI, server: LiveServer) -> Asker:
    return Asker(client, server.model)


def text(answer: ChatCompletion, index: int = 0) -> str:
    return answer.choices[index].message.content or ""


def test_models(client: openai.OpenAI, server: LiveServer) -> None:
    (card,) = client.models.list().data
    assert card.id == server.model
    assert client.models.retrieve(server.model) == card


def test_usage_is_what_the_tokenizer_counts(ask: Asker, server: LiveServer) -> None:
    answer = ask.plain(temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.choices[0].finish_reason == "length"
    tokenizer = server.engine.tokenizer
    assert len(tokenizer.encode(text(answer))) == pytest.approx(24, abs=2)
    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in MESSAGES)
    assert answer.usage.prompt_tokens == len(tokenizer.encode(prompt + "<|im_start|>assistant\n"))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_an_answer_that_ends_by_itself(ask: Asker) -> None:
    messages = [{"role": "user", "content": "Answer with one word only: what is 2+2?"}]
    answer = ask.plain(messages=messages, temperature=0, max_completion_tokens=200)
    assert answer.choices[0].finish_reason == "stop"
    assert "<|im_end|>" not in text(answer)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 2.0, "n": 3},
        {"temperature": 1.2, "logprobs": True, "top_logprobs": 3, "n": 2},
        {"frequency_penalty": 1.5, "presence_penalty": 0.5, "stop": ["the", "\n"]},
    ],
)
def test_a_stream_says_what_the_plain_answer_says(ask: Asker, fields: dict[str, Any]) -> None:
    plain = ask.plain(**fields)
    chunks = ask.stream(**fields)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert plain.usage is not None
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[0].system_fingerprint == plain.system_fingerprint
    for index in range(len(plain.choices)):
        deltas = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in deltas) == text(plain, index)
        reasons = [choice.finish_reason for choice in deltas]
        assert reasons == [None] * (len(deltas) - 1) + [plain.choices[index].finish_reason]
        logprobs = [
            token for c in deltas if c.logprobs is not None for token in c.logprobs.content or []
        ]
        expected = plain.choices[index].logprobs
        assert logprobs == (expected.content if expected else [])


def test_seeds(ask: Asker) -> None:
    first = ask.plain(n=3, temperature=1.5)
    again = ask.plain(n=3, temperature=1.5)
    other = ask.plain(n=3, temperature=1.5, seed=12)
    assert first.choices == again.choices
    assert len({text(first, i) for i in range(3)}) == 3
    assert text(other) != text(first)
    assert text(ask.plain(temperature=1.5)) == text(first)
    assert text(ask.plain(temperature=1.5, seed=None)) != text(
        ask.plain(temperature=1.5, seed=None)
    )


def test_logprobs_join_to_the_text(ask: Asker) -> None:
    answer = ask.plain(logprobs=True, top_logprobs=5, temperature=1.5)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 24
    joined = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert joined.decode(errors="replace") == text(answer)
    for token in logprobs.content:
        values = [top.logprob for top in token.top_logprobs]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
        assert token.logprob <= values[0] <= 0.0
        same = [top.logprob for top in token.top_logprobs if top.bytes == token.bytes]
        assert same in ([], [token.logprob])


def test_stop_strings_end_the_text_before_them(ask: Asker) -> None:
    whole = text(ask.plain(temperature=0))
    for start in (3, 7, 11):
        stop = whole[start : start + 5]
        answer = ask.plain(temperature=0, stop=stop)
        assert text(answer) == whole[: whole.index(stop)]
        assert answer.choices[0].finish_reason == "stop"


def test_logit_bias_forces_and_forbids(ask: Asker, server: LiveServer) -> None:
    (token,) = server.engine.tokenizer.encode("sea")
    answer = ask.plain(logit_bias={str(token): 100}, max_completion_tokens=4)
    assert text(answer) == "sea" * 4
    one_token = {"messages": HELLO, "temperature": 0, "max_completion_tokens": 1}
    greedy = text(ask.plain(**one_token))
    (first,) = server.engine.tokenizer.encode(greedy)
    assert text(ask.plain(**one_token, logit_bias={str(first): -100})) != greedy


def test_cached_tokens_are_reported(ask: Asker) -> None:
    unique = [{"role": "user", "content": "A prompt that nobody has sent before. " * 5}]
    first, second = (
        ask.plain(messages=unique, max_completion_tokens=1).to_dict()["usage"] for _ in range(2)
    )
    num_read, num_written = first["cache_read_input_tokens"], first["cache_creation_input_tokens"]
    assert num_written > 0
    assert second["cache_read_input_tokens"] == num_read + num_written < second["prompt_tokens"]
    assert second["cache_creation_input_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] == num_read + num_written


def test_continuing_the_final_message(ask: Asker) -> None:
    messages = [
        {"role": "user", "content": "Count from one to ten."},
        {"role": "assistant", "content": "one, two, three, four,"},
    ]
    answer = ask.plain(
        messages=messages, temperature=0, extra_body={"continue_final_message": True}
    )
    assert "five" in text(answer)


def test_a_function_call_in_the_legacy_form(ask: Asker) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    }
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "functions": [{"name": "get_weather", "parameters": schema}],
        "function_call": {"name": "get_weather"},
        "max_completion_tokens": 100,
    }
    (choice,) = ask.plain(**fields).choices
    assert choice.finish_reason == "function_call"
    call = choice.message.function_call
    assert call is not None
    assert call.name == "get_weather"
    assert list(json.loads(call.arguments)) == ["city"]
    deltas = [c.choices[0] for c in ask.stream(**fields) if c.choices]
    assert deltas[-1].finish_reason == "function_call"
    pieces = [d.delta.function_call for d in deltas if d.delta.function_call is not None]
    assert pieces[0].name == call.name
    assert "".join(piece.arguments or "" for piece in pieces) == call.arguments
    history = [
        *fields["messages"],
        choice.message.model_dump(exclude_none=True),
        {"role": "function", "name": "get_weather", "content": "Sunny, 21 degrees"},
    ]
    assert ask.plain(**(fields | {"messages": history, "function_call": "none"})).choices


@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_clients_own_exceptions(ask: Asker, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        ask.plain(messages=[{"role": "user", "content": "sea " * 9000}], stream=stream)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "messages"
    with pytest.raises(openai.NotFoundError) as unknown:
        ask.plain(model="gpt-9", stream=stream)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        ask.plain(temperature=3, stream=stream)
    assert bad.value.param == "temperature"
    assert bad.value.response.headers["x-request-id"]


def test_leaving_a_stream_frees_its_sequences(ask: Asker, server: LiveServer) -> None:
    fields = ask.fields | {"max_completion_tokens": 2000, "extra_body": {"ignore_eos": True}}
    with ask.client.chat.completions.create(**fields, stream=True, n=4) as stream:
        next(iter(stream))
        assert server.engine.stats().num_used_blocks > 0
    server.wait_until_idle()


def test_leaving_a_plain_request_frees_its_sequences(ask: Asker, server: LiveServer) -> None:
    fields = ask.fields | {"max_completion_tokens": 4000, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        ask.client.with_options(timeout=0.5).chat.completions.create(**fields)
    server.wait_until_idle()


def test_many_streams_at_once_say_what_each_says_alone(ask: Asker, server: LiveServer) -> None:
    def stream_text(seed: int) -> str:
        chunks = ask.stream(seed=seed, temperature=1.3, max_completion_tokens=8 + seed)
        return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)

    alone = [stream_text(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(stream_text, range(6))) == alone
    server.wait_until_idle()


def test_the_bytes_of_a_stream(server: LiveServer) -> None:
    body = {"model": server.model, "messages": MESSAGES, "stream": True, "max_tokens": 3}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        content = response.read().decode()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = content.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events)
