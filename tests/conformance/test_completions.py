"""Text completions on the default model: the old client's usage, and log-probabilities that are
those of the weights."""

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import torch
from openai.types import Completion
from transformers import AutoModelForCausalLM

from stonechat_models.checkpoint.cache import content_hash
from stonechat_models.checkpoint.resolve import ModelFiles

from .conftest import LiveServer, live_server

PROMPT = "The capital of France is"
TEXTS = ["Gruß, 世界! 👋🏽 The", "def add(a, b):\n    return", "<|im_start|>user\nHi<|im_end|>\n"]


def complete(client: openai.OpenAI, **fields: Any) -> Completion:
    return client.completions.create(**{"model": "", "prompt": PROMPT, "temperature": 0} | fields)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(server: LiveServer) -> str:
    return server.model


def test_a_text_goes_on(client: openai.OpenAI, model: str) -> None:
    answer = complete(client, model=model, max_tokens=3)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    stopped = complete(client, model=model, max_tokens=20, stop=["."])
    assert stopped.choices[0].text == " Paris"
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("text", TEXTS)
def test_echo_and_the_stream_agree(client: openai.OpenAI, model: str, text: str) -> None:
    fields = {"model": model, "prompt": text, "max_tokens": 6, "logprobs": 2, "echo": True}
    plain = complete(client, **fields).choices[0]
    assert plain.text.startswith(text)
    joined, tokens, offsets, values = "", [], [], []
    for chunk in complete(client, **fields, stream=True):
        (choice,) = chunk.choices
        joined += choice.text
        if choice.logprobs is not None:
            tokens += choice.logprobs.tokens
            offsets += choice.logprobs.text_offset
            values += choice.logprobs.token_logprobs
    logprobs = plain.logprobs
    assert logprobs is not None
    assert (joined, tokens, offsets) == (plain.text, logprobs.tokens, logprobs.text_offset)
    assert values[0] is None
    assert values[1:] == pytest.approx(logprobs.token_logprobs[1:], abs=1e-3)
    for token, offset in zip(tokens, offsets, strict=True):
        is_hidden = token.startswith("<|") and offset >= len(text)
        assert is_hidden or token.startswith("bytes:") or joined[offset:].startswith(token)


def test_each_token_has_log_probabilities(client: openai.OpenAI, model: str) -> None:
    """EOS too, which has no text: clients leave out the last token to score a prompt."""
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi!"
    fields = {"model": model, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True}
    answer = complete(client, **fields, logit_bias={"2": 100})
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == prompt
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert answer.usage is not None
    assert len(logprobs.tokens) == answer.usage.prompt_tokens + 1
    assert logprobs.tokens[-1] == "<|im_end|>"
    assert logprobs.text_offset[-1] == len(prompt)


def test_several_prompts_and_the_best_of_many(client: openai.OpenAI, model: str) -> None:
    alone = [complete(client, model=model, prompt=p, max_tokens=4).choices[0].text for p in TEXTS]
    answer = complete(client, model=model, prompt=TEXTS, max_tokens=4, n=2)
    assert [choice.text for choice in answer.choices] == [t for t in alone for _ in range(2)]
    fields = {"model": model, "temperature": 1.5, "seed": 5, "max_tokens": 4, "logprobs": 0}
    every = complete(client, **fields, n=5).choices
    best = max(every, key=lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens))
    assert complete(client, **fields, best_of=5).choices[0].text == best.text


def test_a_grammar_rules_the_text(client: openai.OpenAI, model: str) -> None:
    form = {"structured_outputs": {"regex": " [0-9]{3}"}}
    text = complete(client, model=model, prompt="One and one is", extra_body=form).choices[0].text
    assert text.strip().isdigit()
    assert len(text) == 4


def test_the_default_model_cannot_fill_in(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, model=model, suffix="x")
    assert caught.value.param == "suffix"


@pytest.mark.slow
def test_log_probabilities_are_those_of_transformers(
    say: Callable[[str], None], default_model_files: ModelFiles
) -> None:
    with live_server(say, backend="transformers", dtype="float32") as live:
        folder = default_model_files.folder
        content = content_hash(default_model_files.weights)[:24]
        folder = folder.with_name(f"{folder.name}-{content}-float32")
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0) as client:
            extra = {"return_token_ids": True, "prompt_logprobs": 3}
            fields = {"model": live.model, "max_tokens": 5, "logprobs": 1, "echo": True}
            answer = complete(client, **fields, prompt=TEXTS, extra_body=extra)
    for choice in answer.choices:
        body: Any = choice.model_dump()
        ids = torch.tensor([body["prompt_token_ids"] + body["token_ids"]])
        with torch.inference_mode():
            rows = reference(ids).logits[0].log_softmax(-1)
        expected = rows[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert body["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-3)
        for position, entries in enumerate(body["prompt_logprobs"][1:]):
            row = rows[position]
            for token_id, entry in entries.items():
                value = row[int(token_id)]
                assert entry["logprob"] == pytest.approx(value.item(), abs=1e-3)
                assert abs(int((row > value).sum()) + 1 - entry["rank"]) <= 1
