"""Text to tokens and back, and what is known of the tokenizer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, processors

from stonechat_models import Tokenizer
from stonechat_models.text.tokenizer_config import TokenizerFiles
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from stonechat_server.tokens_api.types import MAX_TOKENS
from tests.models.tiny_tokenizers import EOS, byte_level_backend, sentencepiece_backend, wrap
from tests.server.bodies import error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import CHATML, FakeEngine, model_info

HI = [{"role": "user", "content": "hi"}]
DIFFERENT = {"add_special": True, "add_special_tokens": False}
CHAT_PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
TEXT = st.text(st.characters(codec="utf-8"), max_size=40)


def with_bos() -> Tokenizer:
    """A byte-level tokenizer that puts `<bos>` before a text and `<eos>` behind it."""
    backend = byte_level_backend()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<bos>", "<eos>")])
    backend.add_tokens([AddedToken("<call>", special=False)])
    ids = [(name, backend.token_to_id(name)) for name in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing("<bos> $A <eos>", None, ids)
    files = TokenizerFiles(
        special_tokens={"bos_token": "<bos>", "eos_token": "<eos>"},
        chat_templates={"default": CHATML, "tool_use": "{{ tools }}"},
        tokenizer_class="Qwen2Tokenizer",
    )
    return Tokenizer(backend, files, Path("tokenizer.json"))


@contextmanager
def serving(tokenizer: Tokenizer, **settings: Any) -> Iterator[TestClient]:
    engine = FakeEngine(
        tokenizer=tokenizer,  # type: ignore[arg-type]
        model=model_info(vocab_size=tokenizer.vocab_size + 64),
    )
    app = create_app(Settings(**settings), engine)
    with TestClient(app, "http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def answer(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def bos_client() -> Iterator[TestClient]:
    with serving(with_bos()) as client:
        yield client


TOKENIZERS = {
    "byte-level": wrap(byte_level_backend()),
    "byte-level with BOS and EOS": with_bos(),
    "sentencepiece": wrap(sentencepiece_backend(prefix=False), "</s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_client(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    with serving(TOKENIZERS[request.param]) as client:
        yield client


@given(text=TEXT)
def test_a_text_comes_back_from_its_tokens(any_client: TestClient, text: str) -> None:
    tokens = answer(any_client, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert answer(any_client, "/detokenize", tokens=tokens) == {"prompt": text, "content": text}


@given(text=TEXT)
def test_pieces_are_the_bytes_of_the_text(any_client: TestClient, text: str) -> None:
    pieces = answer(any_client, "/tokenize", content=text, with_pieces=True)["tokens"]
    data = [p["piece"] for p in pieces]
    joined = b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in data)
    assert joined == text.encode()
    ids = [p["id"] for p in pieces]
    assert ids == answer(any_client, "/tokenize", content=text)["tokens"]


def test_the_answer_has_what_clients_of_vllm_read(client: TestClient) -> None:
    for path in ("/tokenize", "/v1/tokenize"):
        assert answer(client, path, prompt="hé", return_token_strs=True) == {
            "count": 3,
            "max_model_len": 4096,
            "tokens": [104, 195, 169],
            "token_strs": ["<0x68>", "<0xC3>", "<0xA9>"],
        }
    assert answer(client, "/tokenize", prompt="")["tokens"] == []
    assert answer(client, "/tokenize", prompt="x")["token_strs"] is None


@pytest.mark.parametrize(
    ("body", "has_special"),
    [
        ({"prompt": "a"}, True),
        ({"prompt": "a", "add_special_tokens": False}, False),
        ({"prompt": "a", "add_special": False}, False),
        ({"prompt": "a", "add_special": True, "add_special_tokens": True}, True),
        ({"prompt": "a", "parse_special": False}, True),
        ({"prompt": "a", "parse_special": False, "add_special_tokens": False}, False),
        ({"content": "a"}, False),
        ({"content": "a", "add_special": True}, True),
        ({"content": "a", "add_special_tokens": True}, True),
    ],
)
def test_special_tokens_around_a_text(
    bos_client: TestClient, body: dict[str, Any], has_special: bool
) -> None:
    tokens = answer(bos_client, "/tokenize", **body, with_pieces=True)["tokens"]
    expected = ["<bos>", "a", "<eos>"] if has_special else ["a"]
    assert [token["piece"] for token in tokens] == expected


def test_special_tokens_in_a_text_can_be_ordinary_text(bos_client: TestClient) -> None:
    parsed = answer(bos_client, "/tokenize", content="<bos>a")
    assert parsed["count"] == 2
    plain = answer(bos_client, "/tokenize", content="<bos>a", parse_special=False)
    assert plain["tokens"] == list(b"<bos>a")
    for tokens in (parsed["tokens"], plain["tokens"]):
        assert answer(bos_client, "/detokenize", tokens=tokens)["prompt"] == "<bos>a"


def test_messages_are_rendered_as_a_chat_is(client: TestClient) -> None:
    def text(**fields: Any) -> str:
        tokens = answer(client, "/tokenize", messages=HI, **fields)["tokens"]
        return str(answer(client, "/detokenize", tokens=tokens)["prompt"])

    assert text() == CHAT_PROMPT
    assert text(add_generation_prompt=False) == CHAT_PROMPT.removesuffix("<|im_start|>assistant\n")
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
    assert "look_up" in text(tools=[tool])
    prefill = [*HI, {"role": "assistant", "content": "We"}]
    open_end = answer(
        client, "/tokenize", messages=prefill, continue_final_message=True, with_pieces=True
    )
    assert "".join(t["piece"] for t in open_end["tokens"]).endswith("assistant\nWe")


def test_special_tokens_around_a_chat_only_if_asked_for(bos_client: TestClient) -> None:
    plain = answer(bos_client, "/tokenize", messages=HI)["tokens"]
    marked = answer(bos_client, "/tokenize", messages=HI, add_special_tokens=True)["tokens"]
    assert marked[1:-1] == plain
    assert answer(bos_client, "/detokenize", tokens=[marked[0], marked[-1]])["prompt"] == (
        "<bos><eos>"
    )


def test_a_prompt_longer_than_the_context_is_counted(client: TestClient) -> None:
    assert answer(client, "/tokenize", prompt="x" * 50_000)["count"] == 50_000
    long = [{"role": "user", "content": "x" * 5_000}]
    assert answer(client, "/tokenize", messages=long)["count"] == 5_050


@pytest.mark.parametrize("name", ["with_pieces", "return_token_strs"])
def test_texts_come_with_a_bounded_number_of_tokens(client: TestClient, name: str) -> None:
    most = {"prompt": "x" * MAX_TOKENS, name: True}
    response = client.post("/tokenize", json=most | {"prompt": most["prompt"] + "x"})
    assert response.status_code == 400
    assert error_of(response)["param"] == name
    assert f"{MAX_TOKENS + 1} tokens, and at most {MAX_TOKENS} " in error_of(response)["message"]
    assert answer(client, "/tokenize", **most)["count"] == MAX_TOKENS


def test_a_text_comes_from_a_bounded_number_of_tokens(client: TestClient) -> None:
    response = client.post("/detokenize", json={"tokens": [97] * (MAX_TOKENS + 1)})
    assert response.status_code == 400
    assert error_of(response)["param"] == "tokens"
    assert f"{MAX_TOKENS + 1} tokens, and at most {MAX_TOKENS} " in error_of(response)["message"]
    assert len(answer(client, "/detokenize", tokens=[97] * MAX_TOKENS)["prompt"]) == MAX_TOKENS


def test_a_whole_context_gets_its_text() -> None:
    engine = FakeEngine(model=model_info(max_model_len=MAX_TOKENS + 2))
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        tokens = [97] * (MAX_TOKENS + 1)
        assert len(answer(client, "/detokenize", tokens=tokens)["prompt"]) == MAX_TOKENS + 1


def test_a_text_is_no_larger_than_a_body_may_be() -> None:
    tokenizer = wrap(byte_level_backend())
    [token_id] = tokenizer.encode(EOS)
    with serving(tokenizer, max_body_size=len(EOS) * 12) as client:
        assert answer(client, "/detokenize", tokens=[token_id] * 12)["content"] == EOS * 12
        response = client.post("/detokenize", json={"tokens": [token_id] * 13})
    assert response.status_code == 400
    assert error_of(response)["param"] == "tokens"
    assert error_of(response)["message"] == (
        f"The text has {len(EOS) * 13} bytes, and at most {len(EOS) * 12} are allowed."
    )


def test_fields_without_effect_are_named(client: TestClient) -> None:
    def ignored(**body: Any) -> str | None:
        response = client.post("/tokenize", json=body)
        assert response.status_code == 200
        return response.headers.get("x-ignored-params")

    assert ignored(prompt="x", colour=1) == "colour"
    assert ignored(messages=HI, temperature=1, n_predict=3, stream=False) == (
        "n_predict, temperature"
    )
    assert ignored(messages=HI, chat_template_kwargs={"a": 1}, return_token_strs=True) is None


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HI}, "messages"),
        ("/tokenize", {"prompt": "a", "content": "a"}, "content"),
        ("/tokenize", {"prompt": "", **DIFFERENT}, "add_special"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ("/tokenize", {"messages": HI, "chat_template": "{{ 1 }}"}, "chat_template"),
        (
            "/tokenize",
            {"messages": HI, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 2.5]}, "tokens[1]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [0, 256]}, "tokens[1]"),
        ("/detokenize", {"tokens": [2**63]}, "tokens[0]"),
        ("/detokenize", {"tokens": [10**40]}, "tokens[0]"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(
    client: TestClient, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/chat/completions/render"])
def test_the_rules_of_all_endpoints_hold(new_client: ClientFactory, path: str) -> None:
    body = {"prompt": "a"} if path == "/tokenize" else {"tokens": [1]}
    body = {"messages": HI} if "chat" in path else body
    locked = new_client(api_key=["k"], max_body_size=200, max_images_size=1, strict_params=True)
    assert locked.post(path, json=body).status_code == 401
    headers = {"Authorization": "Bearer k"}

    def post(**fields: Any) -> Any:
        return locked.post(path, json={**body, **fields}, headers=headers)

    assert post().status_code == 200
    assert error_of(post(model="gpt-9"))["code"] == "model_not_found"
    assert error_of(post(colour="red"))["code"] == "unknown_parameter"
    assert error_of(post(model="x" * 300))["code"] == "request_too_large"
    assert error_of(post(x=nested(60)))["code"] == "unknown_parameter"
    assert error_of(post(x=nested(70)))["code"] == "json_too_deep"
    for content in (b"", b"[]", b"{", b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}'):
        response = locked.post(path, content=content, headers=headers)
        assert response.status_code == 400
        error_of(response)
    locked.app.state.server.lifecycle.begin_drain()  # type: ignore[attr-defined]
    assert post().status_code == 503


def test_large_bodies_are_tokenised_outside_the_event_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparations = client.app.state.server.preparations  # type: ignore[attr-defined]
    sizes: list[int] = []
    run = preparations.run

    async def recorded(work: Any, size: int) -> Any:
        sizes.append(size)
        return await run(work, size)

    monkeypatch.setattr(preparations, "run", recorded)
    answer(client, "/tokenize", prompt="x")
    assert sizes == []
    answer(client, "/tokenize", prompt="x" * 20_000)
    answer(client, "/detokenize", tokens=[1] * 10_000)
    answer(client, "/tokenize", content="x", parse_special=False)
    assert len(sizes) == 3


def test_ids_of_the_model_beyond_the_vocabulary_have_no_text(bos_client: TestClient) -> None:
    vocab_size = bos_client.get("/tokenizer_info").json()["vocab_size"]
    tokens = [97, vocab_size, 98]
    assert answer(bos_client, "/detokenize", tokens=tokens)["prompt"] == "ab"
    response = bos_client.post("/detokenize", json={"tokens": [vocab_size + 64]})
    assert error_of(response)["param"] == "tokens[0]"


def test_the_tokenizer_is_described(bos_client: TestClient) -> None:
    info = bos_client.get("/tokenizer_info").json()
    assert info["tokenizer_class"] == "Qwen2Tokenizer"
    assert info["chat_template"] == CHATML
    assert info["chat_templates"] == {"tool_use": "{{ tools }}"}
    assert (info["bos_token"], info["eos_token"]) == ("<bos>", "<eos>")
    assert info["max_model_len"] == info["model_max_length"] == 4096
    added = {token["content"]: token["special"] for token in info["added_tokens_decoder"].values()}
    assert added == {EOS: True, "<|other|>": True, "<bos>": True, "<eos>": True, "<call>": False}
    ids = {token["content"]: int(i) for i, token in info["added_tokens_decoder"].items()}
    for text, token_id in ids.items():
        assert answer(bos_client, "/tokenize", content=text)["tokens"] == [token_id]
    assert info["vocab_size"] == max(ids.values()) + 1
    assert bos_client.get("/v1/tokenizer_info").json() == info


def test_the_template_is_the_one_that_is_used(new_client: ClientFactory) -> None:
    template = "{{ messages[0].content }}"
    client = new_client(chat_template=template)
    assert client.get("/tokenizer_info").json()["chat_template"] == template


def test_a_model_without_a_template(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.tokenizer.chat_template = None
    assert new_client().get("/tokenizer_info").json()["chat_template"] is None


def test_the_tokenizer_needs_the_key_and_the_version_does_not(new_client: ClientFactory) -> None:
    client = new_client(api_key=["k"])
    assert client.get("/tokenizer_info").status_code == 401
    version = client.get("/version")
    assert version.json() == {"version": client.app.version}  # type: ignore[attr-defined]
