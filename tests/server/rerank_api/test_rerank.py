"""`POST /v1/rerank` and `/v1/score` on a tiny BERT, compared with plain transformers."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_models import AsyncEngine
from stonechat_server.admission.records import FinishedRequest
from stonechat_server.request.prepare_pool import Preparations
from stonechat_server.settings import Settings
from tests.models.tiny_embedders import write_json
from tests.models.tiny_rerankers import save_reranker
from tests.server.batches_api.batch_files import create, results, wait_for
from tests.server.rerank_api.conftest import DOCUMENTS, QUERY, URL, Post, Serve, expected
from tests.server.storing import storing_client

LONG = "the cat sat on the mat " * 20


def sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number))


def scores(response: Any) -> list[float]:
    """The scores of an answer in the order of the documents. Checks that the best is first."""
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    ranked = [item["relevance_score"] for item in results]
    assert ranked == sorted(ranked, reverse=True)
    return [item["relevance_score"] for item in sorted(results, key=lambda item: item["index"])]


def test_documents_are_ranked(post: Post, reranker: Path) -> None:
    answer = post(model="tiny-bert", user="u").json()
    assert answer.keys() == {"id", "object", "model", "usage", "results"}
    assert answer["id"].startswith("rerank-")
    assert (answer["object"], answer["model"]) == ("list", "tiny-bert")
    logits, num_tokens = expected(reranker, QUERY, DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    order = sorted(range(len(DOCUMENTS)), key=lambda i: -logits[i])
    assert [item["index"] for item in answer["results"]] == order
    assert [item["document"] for item in answer["results"]] == [
        {"text": DOCUMENTS[i]} for i in order
    ]
    assert scores(post()) == pytest.approx([sigmoid(logit) for logit in logits], abs=1e-5)


@pytest.mark.parametrize("fields", [{"raw_scores": True}, {"use_activation": False}])
def test_raw_scores(fields: dict[str, bool], post: Post, reranker: Path) -> None:
    logits, _ = expected(reranker, QUERY, DOCUMENTS)
    assert scores(post(**fields)) == pytest.approx(logits, abs=1e-5)


@pytest.mark.parametrize("fields", [{}, {"raw_scores": False}, {"use_activation": True}])
def test_scores_are_from_0_to_1_unless_asked(fields: dict[str, bool], post: Post) -> None:
    assert scores(post(**fields)) == pytest.approx(scores(post()), abs=1e-6)


@pytest.mark.parametrize(("top_n", "num"), [(1, 1), (3, 3), (9, 4), (0, 4), (None, 4)])
def test_top_n(top_n: int | None, num: int, post: Post) -> None:
    whole = [item["index"] for item in post().json()["results"]]
    assert [item["index"] for item in post(top_n=top_n).json()["results"]] == whole[:num]


def test_documents_as_objects_come_back_whole(post: Post) -> None:
    objects = [{"text": text, "metadata": {"page": i}} for i, text in enumerate(DOCUMENTS)]
    response = post(documents=[*objects[:2], *DOCUMENTS[2:]])
    assert scores(response) == pytest.approx(scores(post()), abs=1e-6)
    shown = {item["index"]: item["document"] for item in response.json()["results"]}
    assert [shown[i] for i in range(4)] == [*objects[:2], *({"text": t} for t in DOCUMENTS[2:])]
    assert "X-Ignored-Params" not in response.headers
    bare = post(return_documents=False).json()["results"]
    assert all(item.keys() == {"index", "relevance_score"} for item in bare)


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/v1/reranking", "/reranking"])
def test_other_paths(path: str, client: TestClient, post: Post) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS}
    assert scores(client.post(path, json=body)) == pytest.approx(scores(post()), abs=1e-6)


def test_an_empty_document_has_a_score(post: Post, reranker: Path) -> None:
    logits, _ = expected(reranker, QUERY, ["", "x"])
    assert scores(post(documents=["", "x"], raw_scores=True)) == pytest.approx(logits, abs=1e-5)


@pytest.mark.parametrize(
    "fields", [{"truncation": True}, {"truncate": True}, {"truncate_prompt_tokens": -1}]
)
@pytest.mark.parametrize(("query", "document"), [(QUERY, LONG), (LONG, "x"), (LONG, LONG + "cat")])
def test_long_pairs_are_cut_as_transformers_cuts_them(
    query: str, document: str, fields: dict[str, Any], post: Post, reranker: Path
) -> None:
    documents = [document, "the cat"]
    options = {"truncation": "longest_first", "max_length": 64}
    logits, num_tokens = expected(reranker, query, documents, **options)
    response = post(query, documents, raw_scores=True, **fields)
    assert scores(response) == pytest.approx(logits, abs=1e-5)
    assert response.json()["usage"]["prompt_tokens"] == num_tokens


@pytest.mark.parametrize("length", [4, 5, 11, 12, 30, 64])
def test_pairs_are_cut_to_a_length(length: int, post: Post, reranker: Path) -> None:
    options = {"truncation": "longest_first", "max_length": length}
    for query in ("a", QUERY, LONG):
        logits, _ = expected(reranker, query, [*DOCUMENTS, LONG], **options)
        response = post(query, [*DOCUMENTS, LONG], truncate_prompt_tokens=length, raw_scores=True)
        assert scores(response) == pytest.approx(logits, abs=1e-5)
    assert post(LONG, [LONG], truncate_prompt_tokens=3).status_code == 400


def test_each_text_has_a_limit_of_its_own(post: Post, reranker: Path) -> None:
    logits, _ = expected(reranker, "the cat", ["the dog", "a"])
    fields = {"max_tokens_per_query": 2, "max_tokens_per_doc": 2, "raw_scores": True}
    actual = scores(post("the cat sat", ["the dog runs on the mat", "a"], **fields))
    assert actual == pytest.approx(logits, abs=1e-5)


def test_many_documents_share_batches(post: Post, reranker: Path) -> None:
    documents = ["the cat " * (i % 9) + "dog" for i in range(100)]
    logits, _ = expected(reranker, QUERY, documents)
    assert scores(post(documents=documents, raw_scores=True)) == pytest.approx(logits, abs=1e-5)


def test_what_takes_long_is_prepared_in_a_thread(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pair repeats the question."""
    sizes, run = [], Preparations.run

    async def count(self: Preparations, work: Any, num_bytes: int) -> Any:
        sizes.append(num_bytes)
        return await run(self, work, num_bytes)

    monkeypatch.setattr(Preparations, "run", count)
    long = "the cat " * 600
    for query, documents, is_long in (
        (QUERY, ["x"] * 16, False),
        (QUERY, ["x"] * 17, True),
        (long, ["x"] * 3, False),
        (long, ["x"] * 4, True),
    ):
        sizes.clear()
        scores(post(query, documents, truncation=True))
        assert len(sizes) == is_long


def test_many_clients_get_the_same_scores(client: TestClient) -> None:
    def send(i: int) -> list[float]:
        body = {"query": QUERY, "documents": DOCUMENTS[i % 3 :]}
        return scores(client.post(URL, json=body))

    alone = [send(i) for i in range(3)]
    with ThreadPoolExecutor(8) as pool:
        for i, actual in enumerate(pool.map(send, range(40))):
            assert actual == pytest.approx(alone[i % 3], abs=1e-5)


def test_the_models_own_prompt_and_case(serve: Serve, tmp_path: Path) -> None:
    folder = save_reranker(tmp_path / "model")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.Transformer"}
    ]
    write_json(folder / "modules.json", modules)
    settings = {
        "model_type": "CrossEncoder",
        "prompts": {"q": "Query: "},
        "default_prompt_name": "q",
    }
    write_json(folder / "config_sentence_transformers.json", settings)
    write_json(folder / "sentence_bert_config.json", {"do_lower_case": True})
    logits, _ = expected(folder, "query: the cat", ["a dog"])
    body = {"query": "the CAT", "documents": ["A dog"], "raw_scores": True}
    assert scores(serve(folder).post(URL, json=body)) == pytest.approx(logits, abs=1e-5)


def test_special_tokens_in_texts_can_be_text(serve: Serve, post: Post) -> None:
    spelled = {"query": "[SEP]", "documents": ["[CLS] the cat"]}
    plain = {"query": QUERY, "documents": DOCUMENTS}
    as_text = serve(special_tokens_as_text=True)
    assert scores(as_text.post(URL, json=plain)) == pytest.approx(scores(post()), abs=1e-6)
    num_tokens = as_text.post(URL, json=spelled).json()["usage"]["prompt_tokens"]
    assert num_tokens > post(**spelled).json()["usage"]["prompt_tokens"] == 3 + 1 + 3


@pytest.mark.parametrize(
    ("text_1", "text_2", "pairs"),
    [
        (QUERY, "x", [(QUERY, "x")]),
        (QUERY, DOCUMENTS, [(QUERY, document) for document in DOCUMENTS]),
        ([QUERY], ["x", "a"], [(QUERY, "x"), (QUERY, "a")]),
        (["x", "a"], ["the cat", "a dog"], [("x", "the cat"), ("a", "a dog")]),
    ],
)
def test_scores_of_pairs(
    text_1: Any, text_2: Any, pairs: list[tuple[str, str]], client: TestClient, reranker: Path
) -> None:
    answer = client.post("/v1/score", json={"text_1": text_1, "text_2": text_2}).json()
    assert answer.keys() == {"id", "object", "created", "model", "data", "usage"}
    assert (answer["object"], answer["model"]) == ("list", "tiny-bert")
    both = [expected(reranker, first, [second]) for first, second in pairs]
    assert answer["usage"]["total_tokens"] == sum(num_tokens for _, num_tokens in both)
    assert [item["index"] for item in answer["data"]] == list(range(len(pairs)))
    actual = [item["score"] for item in answer["data"]]
    assert actual == pytest.approx([sigmoid(logits[0]) for logits, _ in both], abs=1e-5)


def test_the_model_says_what_it_does(client: TestClient) -> None:
    facts = client.get("/v1/models").json()["data"][0]["stonechat"]
    assert (facts["generates"], facts["embedding"]) == (False, None)
    ranking = facts["ranking"]
    assert (ranking["activation"], ranking["template"], ranking["prompt"]) == (
        "Sigmoid",
        "pair",
        "",
    )


def test_a_request_is_one_record(serve: Serve, records: list[FinishedRequest]) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "user": "u"}
    num_tokens = serve().post(URL, json=body).json()["usage"]["total_tokens"]
    (record,) = records
    assert (record.endpoint, record.status, record.user) == (URL, 200, "u")
    assert (record.num_prompt_tokens, record.num_completion_tokens) == (num_tokens, 0)
    assert record.finish_reasons == ("stop",)


def test_the_ledger_may_keep_the_texts(serve: Serve, records: list[FinishedRequest]) -> None:
    body = {"query": "the cat", "documents": ["a dog"], "top_n": 1}
    assert serve(ledger_text=True).post(URL, json=body).status_code == 200
    assert records[0].prompt == '{"query":"the cat","documents":["a dog"]}'


def test_fields_without_effect_are_named(post: Post) -> None:
    response = post(cache_salt="a", something=1)
    assert response.headers["X-Ignored-Params"] == "something, cache_salt"


def test_a_batch_of_questions(reranker: Path, tmp_path: Path) -> None:
    settings = Settings(model=str(reranker), device="cpu", threads=1)
    engine = AsyncEngine.from_config(settings.engine_config())
    bodies = {
        "a": {"query": QUERY, "documents": DOCUMENTS},
        "b": {"query": "x", "documents": ["a"]},
    }
    lines = [
        {"custom_id": name, "method": "POST", "url": URL, "body": body}
        for name, body in bodies.items()
    ]
    with storing_client(tmp_path / "files", engine, model=str(reranker)) as client:
        output, errors = results(client, wait_for(client, create(client, lines, URL)))
    assert errors == {}
    for name, body in bodies.items():
        logits, _ = expected(reranker, body["query"], body["documents"])
        ranked = output[name]["response"]["body"]["results"]
        best = max(range(len(logits)), key=lambda i: logits[i])
        assert ranked[0]["index"] == best
        assert ranked[0]["relevance_score"] == pytest.approx(sigmoid(logits[best]), abs=1e-5)
