"""Prompts become token ids as the tokenizer says; empty ones begin a text."""

import threading
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tokenizers import AddedToken, normalizers, processors
from tokenizers import Tokenizer as Backend

from stonechat_models import CompletionDelta, FinishReason, GenerateRequest
from stonechat_models.checkpoint.resolve import ModelFiles
from stonechat_models.text.logprob_entries import prompt_entries
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import TokenLogprobs
from tests.models.tiny_tokenizers import byte_level_backend, sentencepiece_backend, wrap
from tests.server import fake_engine
from tests.server.completions_api.bodies import BosTokenizer, ask
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, model_info, output


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(tokenizer=BosTokenizer())


def ids(engine: FakeEngine) -> list[int]:
    return list(engine.requests[-1].prompt_token_ids)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "ab"}, [0, 97, 98]),
        ({"prompt": "ab", "add_special_tokens": False}, [97, 98]),
        ({"prompt": "<s>a"}, [0, 0, 97]),
        ({"prompt": [97, 98]}, [97, 98]),
        ({"prompt": [97, 98], "add_special_tokens": True}, [97, 98]),
        ({"prompt": ""}, [0]),
        ({"prompt": None}, [0]),
        ({"prompt": "", "add_special_tokens": False}, [0]),
    ],
)
def test_the_tokenizer_begins_texts(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], expected: list[int]
) -> None:
    ask(client, **fields)
    assert ids(engine) == expected


def test_special_tokens_may_be_text(new_client: ClientFactory, engine: FakeEngine) -> None:
    ask(new_client(special_tokens_as_text=True), prompt="<s>a")
    assert ids(engine) == [0, *b"[", 0, *b"a]"]  # in brackets: encoded as plain text
    ask(new_client(special_tokens_as_text=True), prompt=[0, 97])
    assert ids(engine) == [0, 97]


def test_the_default_model_reads_special_tokens(
    new_client: ClientFactory, engine: FakeEngine, default_model_files: ModelFiles
) -> None:
    tokenizer = Tokenizer.from_folder(default_model_files.folder)
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.model = model_info(vocab_size=tokenizer.vocab_size)
    (end,) = tokenizer.encode("<|im_end|>")
    ask(new_client(), prompt="Hi<|im_end|>")
    assert ids(engine)[-1] == end
    ask(new_client(special_tokens_as_text=True), prompt="Hi<|im_end|>")
    assert end not in ids(engine)


def test_prompts_are_prepared_on_their_own(client: TestClient, engine: FakeEngine) -> None:
    ask(client, prompt=["a", "bcd"], max_tokens=-1)
    first, second = engine.requests
    assert (list(first.prompt_token_ids), list(second.prompt_token_ids)) == ([0, 97], [0, *b"bcd"])
    assert (first.params.max_tokens, second.params.max_tokens) == (4094, 4092)
    assert first.request_id != second.request_id


def test_an_error_in_one_prompt_ends_the_request(client: TestClient, engine: FakeEngine) -> None:
    def play(request: Any) -> list[Any]:
        if request.prompt_token_ids[-1] == ord("b"):
            return [output(request, error="step failed")]
        last: CompletionDelta = delta("x", finish=FinishReason.STOP)
        return [0.01, output(request, last, finished=True)]

    engine.script = play
    response = client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert response.status_code == 500


def test_prompts_share_their_parameters(client: TestClient, engine: FakeEngine) -> None:
    ask(client, prompt=["a", "bc", "de"], logit_bias={"5": 1}, max_tokens=-1)
    first, *others = [request.params for request in engine.requests]
    assert [params.max_tokens for params in (first, *others)] == [4094, 4093, 4093]
    assert all(params.logit_bias is first.logit_bias for params in others)
    assert others[0] is others[1]


@pytest.mark.parametrize(("num_prompts", "is_inline"), [(32, True), (33, False)])
def test_many_prompts_are_prepared_in_a_thread(
    client: TestClient, engine: FakeEngine, num_prompts: int, is_inline: bool
) -> None:
    threads = {"encode": 0, "generate": 0}

    class Recording(BosTokenizer):
        def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
            threads["encode"] = threading.get_ident()
            return super().encode(text, add_special_tokens)

    def script(request: Any) -> list[Any]:
        threads["generate"] = threading.get_ident()
        return [output(request, delta("x", finish=FinishReason.STOP), finished=True)]

    engine.tokenizer, engine.script = Recording(), script
    ask(client, prompt=["a"] * num_prompts)
    assert (threads["encode"] == threads["generate"]) is is_inline


def normalised() -> Backend:
    backend = byte_level_backend()
    backend.normalizer = normalizers.NFC()
    return backend


def with_token(token: AddedToken) -> Backend:
    backend = byte_level_backend()
    backend.add_special_tokens([token])
    return backend


def with_end() -> Backend:
    backend = byte_level_backend()
    end = "<|end|>"
    ids = [(end, backend.token_to_id(end))]
    backend.post_processor = processors.TemplateProcessing(f"{end} $A {end}", None, ids)
    return backend


@pytest.mark.parametrize(
    ("backend", "prompt", "shown"),
    [
        (byte_level_backend(), "cafe\u0301  \n", "cafe\u0301  \n"),
        (normalised(), "cafe\u0301 xyz", "caf\u00e9 xyz"),
        (with_token(AddedToken("<|user|>", rstrip=True)), "<|user|>\n  hi", "<|user|>hi"),
        (with_token(AddedToken("<mask>", lstrip=True)), "a   <mask> b", "a<mask> b"),
        (with_end(), "hi there", "hi there"),
        (sentencepiece_backend(), "hi \u4e16", "hi \u4e16"),
        (sentencepiece_backend(), " hi", " hi"),
        (sentencepiece_backend(prefix=False), " hi", " hi"),
    ],
)
def test_echo_shows_the_text_of_the_tokens(
    client: TestClient,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend,
    prompt: str,
    shown: str,
) -> None:
    tokenizer = wrap(backend)

    def scored(request: GenerateRequest) -> object:
        later = [TokenLogprobs(i, -1.0) for i in request.prompt_token_ids[1:]]
        return prompt_entries(tokenizer, request.prompt_token_ids, later)

    monkeypatch.setattr(fake_engine, "prompt_logprobs", scored)
    engine.tokenizer = tokenizer  # type: ignore[assignment]
    engine.model = model_info(vocab_size=tokenizer.vocab_size)
    fields = {"echo": True, "logprobs": 0, "max_tokens": 0}
    choice = ask(client, prompt=prompt, **fields)["choices"][0]
    assert choice["text"] == shown
    offsets = choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    at_start = True
    for token, offset in zip(choice["logprobs"]["tokens"], offsets, strict=True):
        if token in ("<|end|>", "") or token.startswith("bytes:"):
            continue
        expected = token.removeprefix(" ") if at_start and not shown.startswith(" ") else token
        assert shown[offset:].startswith(expected), (token, offset)
        at_start = False
