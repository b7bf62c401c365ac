"""`POST /v1/embeddings` on a tiny BERT: formats, options, batches and records."""

import base64
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from fastapi.testclient import TestClient

from stonechat_models import Tokenizer
from stonechat_server.admission.records import FinishedRequest
from tests.models.tiny_embedders import HIDDEN_SIZE, save_embedder, tiny_encoder
from tests.server.embeddings_api.conftest import URL, Post, Serve

TEXTS = ["the cat sat on the mat", "a dog runs", "x", "unable , the dog sat on the mat !"]


def vectors(response: Any) -> np.ndarray:
    """The embeddings [N, D] of a plain answer, in order."""
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return np.array([item["embedding"] for item in data])


def expected(embedder: Path, text: str) -> np.ndarray:
    """The mean of the hidden states of a text alone, with length 1."""
    ids = Tokenizer.from_folder(embedder).encode(text, add_special_tokens=True)
    with torch.inference_mode():
        hidden = tiny_encoder("bert")(input_ids=torch.tensor([ids])).last_hidden_state[0]
    mean = hidden.mean(0)
    return (mean / mean.norm()).numpy()


def test_a_text(post: Post, embedder: Path) -> None:
    answer = post("the cat", model="tiny-bert", user="u").json()
    assert answer.keys() == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "tiny-bert")
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    (item,) = answer["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    np.testing.assert_allclose(item["embedding"], expected(embedder, "the cat"), atol=1e-6)


def test_many_texts_in_their_order(post: Post, embedder: Path) -> None:
    response = post(TEXTS)
    np.testing.assert_allclose(vectors(response), [expected(embedder, t) for t in TEXTS], atol=1e-6)
    assert response.json()["usage"]["prompt_tokens"] == 8 + 5 + 3 + 12


def test_base64_is_the_same_numbers(post: Post) -> None:
    """Of one text: its bits depend on the texts that are computed with it."""
    (floats,) = vectors(post("the cat"))
    (item,) = post("the cat", encoding_format="base64").json()["data"]
    decoded = struct.unpack(f"<{HIDDEN_SIZE}f", base64.b64decode(item["embedding"]))
    assert list(decoded) == floats.tolist()
    assert vectors(post("the cat", encoding_format="float")).tolist() == [floats.tolist()]


def test_token_ids_are_used_as_they_are(post: Post, embedder: Path) -> None:
    tokenizer = Tokenizer.from_folder(embedder)
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]
    np.testing.assert_allclose(vectors(post(ids)), vectors(post(TEXTS)), atol=2e-6)
    np.testing.assert_allclose(vectors(post(ids[0])), vectors(post(TEXTS[0])), atol=2e-6)
    assert post([5]).json()["usage"]["prompt_tokens"] == 1


def test_the_openai_client(serve: Serve) -> None:
    client = serve()
    with openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="x", http_client=client) as api:
        answer = api.embeddings.create(model="tiny-bert", input=TEXTS)  # it asks for base64
        plain = api.embeddings.create(model="tiny-bert", input=TEXTS, encoding_format="float")
        short = api.embeddings.create(model="tiny-bert", input=TEXTS[0], dimensions=4)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    for item, same in zip(answer.data, plain.data, strict=True):
        np.testing.assert_allclose(item.embedding, same.embedding, atol=2e-6)
    assert len(short.data[0].embedding) == 4
    assert answer.usage.total_tokens == 28


def test_dimensions_are_the_first_numbers_with_length_1(post: Post) -> None:
    whole = vectors(post(TEXTS))
    for size in (1, 7, HIDDEN_SIZE):
        cut = whole[:, :size] / np.linalg.norm(whole[:, :size], axis=1, keepdims=True)
        np.testing.assert_allclose(vectors(post(TEXTS, dimensions=size)), cut, atol=1e-6)


def test_normalize(post: Post) -> None:
    raw = vectors(post(TEXTS, normalize=False, dimensions=9))
    assert (abs(np.linalg.norm(raw, axis=1) - 1) > 1e-3).all()
    np.testing.assert_allclose(vectors(post(TEXTS, normalize=None)), vectors(post(TEXTS)))
    np.testing.assert_allclose(vectors(post(TEXTS, normalize=True)), vectors(post(TEXTS)))


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt_name": "query"}, "query: "),
        ({"prompt_name": "plain"}, ""),
        ({"input_type": "query"}, "query: "),
        ({"input_type": "search_query"}, "query: "),
        ({"input_type": "document"}, "passage: "),
        ({"input_type": "passage"}, "passage: "),
        ({}, ""),
    ],
)
def test_prompts(fields: dict[str, str], prompt: str, post: Post) -> None:
    np.testing.assert_allclose(
        vectors(post(TEXTS, **fields)), vectors(post([prompt + text for text in TEXTS])), atol=2e-6
    )


def test_a_default_prompt_is_for_texts_only(serve: Serve, tmp_path: Path) -> None:
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    client = serve(save_embedder(tmp_path / "model", settings=settings))

    def embed(input: Any, **fields: Any) -> np.ndarray:
        return vectors(client.post(URL, json={"input": input, **fields}))

    np.testing.assert_allclose(embed("the cat"), embed("the cat", prompt_name="query"))
    ids = Tokenizer.from_folder(tmp_path / "model").encode("the cat", add_special_tokens=True)
    assert abs(embed(ids) - embed("the cat")).max() > 0.01
    np.testing.assert_allclose(embed("the cat", input_type="document"), embed(ids), atol=2e-6)


def test_a_prompt_that_is_not_pooled(serve: Serve, tmp_path: Path) -> None:
    settings = {"prompts": {"query": "query: the "}}
    folder = save_embedder(tmp_path / "model", settings=settings, include_prompt=False)
    ids = Tokenizer.from_folder(folder).encode("query: the cat", add_special_tokens=True)
    with torch.inference_mode():
        hidden = tiny_encoder("bert")(input_ids=torch.tensor([ids])).last_hidden_state[0]
    mean = hidden[4:].mean(0)  # [CLS] query : the
    answer = serve(folder).post(URL, json={"input": "cat", "prompt_name": "query"})
    np.testing.assert_allclose(vectors(answer)[0], mean / mean.norm(), atol=1e-6)


def test_lower_case_as_the_model_wants_it(serve: Serve, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", transformer={"do_lower_case": True})
    client = serve(folder)
    upper, lower = (client.post(URL, json={"input": text}) for text in ("The CAT", "the cat"))
    np.testing.assert_allclose(vectors(upper), vectors(lower))


def test_long_texts_are_cut_only_on_request(post: Post, embedder: Path) -> None:
    text = "the cat sat on the mat " * 10
    assert post(text).status_code == 400
    cut = post(text, truncate_prompt_tokens=8)
    assert cut.json()["usage"]["prompt_tokens"] == 8
    np.testing.assert_allclose(vectors(cut), vectors(post("the cat sat on the mat")), atol=2e-6)
    assert post(text, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"] == 48
    assert post(text, truncate_prompt_tokens=900).json()["usage"]["prompt_tokens"] == 48
    assert post("the cat", truncate_prompt_tokens=9).json()["usage"]["prompt_tokens"] == 4
    ids = [[2, 9, 10, 11, 3]]
    np.testing.assert_allclose(
        vectors(post(ids, truncate_prompt_tokens=3)), vectors(post([2, 9, 10])), atol=2e-6
    )
    assert post(text, truncate_prompt_tokens=1).json()["usage"]["prompt_tokens"] == 1


def test_special_tokens_around_a_text_can_be_left_out(post: Post) -> None:
    bare = post("the cat", add_special_tokens=False)
    assert bare.json()["usage"]["prompt_tokens"] == 2
    framed = post("[CLS] the cat [SEP]", add_special_tokens=False)
    np.testing.assert_allclose(vectors(framed), vectors(post("the cat")), atol=2e-6)
    cut = post("the cat sat", add_special_tokens=False, truncate_prompt_tokens=2)
    np.testing.assert_allclose(vectors(cut), vectors(bare), atol=2e-6)


def test_special_tokens_in_texts_can_be_text(serve: Serve) -> None:
    client = serve(special_tokens_as_text=True)
    plain, marked = (client.post(URL, json={"input": t}) for t in ("the cat", "the [SEP] cat"))
    assert plain.json()["usage"]["prompt_tokens"] == 4
    assert marked.json()["usage"]["prompt_tokens"] > 5


def test_many_clients_share_batches_and_get_the_same_vectors(client: TestClient) -> None:
    texts = [" ".join(["the cat"] * (1 + i % 12)) + f" {i}" for i in range(48)]
    alone = [vectors(client.post(URL, json={"input": text})) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(
            lambda i: vectors(client.post(URL, json={"input": texts[i : i + 6]})), range(0, 48, 6)
        )
    np.testing.assert_allclose(np.concatenate(list(together)), np.concatenate(alone), atol=2e-6)


def test_the_most_inputs(post: Post) -> None:
    answer = post([[5, 5 + i % 60] for i in range(2048)], encoding_format="base64").json()
    assert [item["index"] for item in answer["data"]] == list(range(2048))
    by_token = {i % 60: item["embedding"] for i, item in enumerate(answer["data"])}
    assert len(set(by_token.values())) == 60
    assert answer["usage"]["prompt_tokens"] == 4096


def test_the_path_without_a_version(client: TestClient) -> None:
    assert client.post("/embeddings", json={"input": "a"}).status_code == 200


def test_the_model_and_its_state_are_shown(client: TestClient) -> None:
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["max_model_len"]) == ("tiny-bert", 48)
    assert card["stonechat"]["generates"] is False
    assert card["stonechat"]["embedding"]["size"] == HIDDEN_SIZE
    assert card["stonechat"]["embedding"]["prompts"]["query"] == "query: "
    assert client.get("/health").status_code == client.get("/ready").status_code == 200


def test_a_request_is_recorded_and_measured(serve: Serve, records: list[FinishedRequest]) -> None:
    client = serve()
    client.post(URL, json={"input": ["the cat", "x"], "user": "someone"})
    (record,) = records
    assert record.endpoint == "/v1/embeddings"
    assert (record.status, record.user, record.model) == (200, "someone", "tiny-bert")
    assert (record.num_prompt_tokens, record.num_completion_tokens) == (7, 0)
    assert (record.finish_reasons, record.num_choices) == (("stop",), 1)
    assert record.timings is not None
    assert record.timings.scheduled is not None
    assert record.prompt is None
    text = client.get("/metrics").text
    assert 'stonechat:prompt_tokens_total{model_name="tiny-bert"} 7.0' in text
    assert 'route="/v1/embeddings",status="200"' in text


def test_a_list_of_texts_is_one_record(serve: Serve, records: list[FinishedRequest]) -> None:
    client = serve()
    assert client.post(URL, json={"input": [[5, 6]] * 2048}).status_code == 200
    (record,) = records
    assert (record.finish_reasons, record.num_choices) == (("stop",), 1)
    assert record.timings is not None
    text = client.get("/metrics").text
    labels = 'endpoint="/v1/embeddings",finished_reason="stop",model_name="tiny-bert"'
    assert f"stonechat:request_success_total{{{labels}}} 1.0" in text


@pytest.mark.parametrize(
    ("fields", "ignored"),
    [
        ({"input": "a", "cache_salt": "s"}, "cache_salt"),
        ({"input": [5], "add_special_tokens": True}, "add_special_tokens"),
        ({"input": "a", "add_special_tokens": True, "input_type": "query"}, None),
        ({"input": "a", "cache_salt": None, "input_type": None}, None),
        ({"input": [[5]], "colour": 1, "add_special_tokens": False}, "colour, add_special_tokens"),
    ],
)
def test_fields_without_effect_are_named(
    fields: dict[str, Any], ignored: str | None, client: TestClient
) -> None:
    response = client.post(URL, json=fields)
    assert response.status_code == 200, response.text
    assert response.headers.get("x-ignored-params") == ignored


def test_a_type_without_a_prompt_has_no_effect(serve: Serve, tmp_path: Path) -> None:
    settings = {"prompts": {"query": "query: "}}
    client = serve(save_embedder(tmp_path / "model", settings=settings))
    for name, ignored in (("query", None), ("document", "input_type"), ("passage", "input_type")):
        response = client.post(URL, json={"input": "a", "input_type": name})
        assert response.headers.get("x-ignored-params") == ignored


@pytest.mark.parametrize(("num_inputs", "num_threads"), [(1, 0), (16, 0), (17, 1), (2048, 1)])
def test_many_inputs_are_prepared_in_a_thread(
    num_inputs: int, num_threads: int, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    preparations = client.app.state.server.preparations  # type: ignore[attr-defined]
    run, sizes = preparations.run, []

    async def counted(work: Any, size: int) -> Any:
        sizes.append(size)
        return await run(work, size)

    monkeypatch.setattr(preparations, "run", counted)
    body = {"input": ["a"] * num_inputs, "input_type": "query"}
    assert client.post(URL, json=body).status_code == 200
    assert len(sizes) == num_threads


def test_the_ledger_may_keep_the_texts(serve: Serve, records: list[FinishedRequest]) -> None:
    serve(ledger_text=True).post(URL, json={"input": "the cat"})
    assert records[0].prompt == '{"input":"the cat"}'
