"""Scores by models that generate, compared with transformers' logits and sentence-transformers."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fastapi.testclient import TestClient

from stonechat_models import EngineConfig, UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.tiny_embedders import write_json
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import EOS, ascii_backend
from tests.server.bodies import error_of
from tests.server.rerank_api.conftest import URL, Serve

QUERY = "Which river is long?"
DOCUMENTS = ["The Volga is a river.", "Everest is a mountain, and not small", "x", ""]
YES, NO = ord("y"), ord("n")
TEMPLATE = (
    "<S>{% for m in messages if m.role == 'system' %}{{ m.content }}{% else %}Find it."
    "{% endfor %}</S>{% for m in messages if m.role == 'query' %}<Q>{{ m.content }}</Q>{% endfor %}"
    "{% for m in messages if m.role == 'document' %}<D>{{ m.content | trim }}</D>{% endfor %}"
    "{% if add_generation_prompt %}<A>{% if not enable_thinking %}no thoughts:{% endif %}"
    "{% endif %}"
)
OPTIONS = {"add_generation_prompt": True, "enable_thinking": False}


def save(folder: Path, *, false_token: int | None = NO, **settings: Any) -> Path:
    """Save a Llama as a cross-encoder of sentence-transformers with a LogitScore.

    `settings`: what config_sentence_transformers.json has beside its kind.
    """
    folder.mkdir()
    sizes = {"vocab_size": 129, "hidden_size": 128, "intermediate_size": 64}  # as the kernels need
    module: Any = tiny_model("llama", **sizes, tie_word_embeddings=True, pad_token_id=128)
    module.save_pretrained(folder)
    ascii_backend().save(str(folder / "tokenizer.json"))
    names = {"eos_token": EOS, "pad_token": EOS, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", {**names, "model_max_length": 256})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    package = "sentence_transformers."
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": f"{package}base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": f"{package}cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    write_json(folder / "modules.json", modules)
    form = {"method": "forward", "method_output_name": "logits"}
    transformer = {
        "transformer_task": "text-generation",
        "modality_config": {"text": form, "message": {**form, "format": "flat"}},
        "module_output_name": "causal_logits",
        "processing_kwargs": {"chat_template": OPTIONS},
    }
    write_json(folder / "sentence_bert_config.json", transformer)
    write_json(
        folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder", **settings}
    )
    (folder / "1_LogitScore").mkdir()
    tokens = {"true_token_id": YES, "false_token_id": false_token}
    score = {**tokens, "module_input_name": "causal_logits"}
    write_json(folder / "1_LogitScore" / "config.json", score)
    return folder


@torch.inference_mode()
def expected(
    folder: Path, query: str, documents: list[str], system: str = "", false_token: int | None = NO
) -> list[float]:
    """The differences of both logits at the end of each prompt, alone and by plain transformers."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    module = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    numbers = []
    for document in documents:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        ids = tokenizer.apply_chat_template(messages, return_dict=False, **OPTIONS)
        logits = module(input_ids=torch.tensor([ids])).logits[0, -1]
        other = 0.0 if false_token is None else logits[false_token].item()
        numbers.append(logits[YES].item() - other)
    return numbers


def numbers(response: Any) -> list[float]:
    """The numbers of an answer in the order of the documents."""
    assert response.status_code == 200, response.text
    results = sorted(response.json()["results"], key=lambda item: item["index"])
    return [item["relevance_score"] for item in results]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("generating") / "tiny-llama")


def ask(client: TestClient, query: str = QUERY, documents: Any = DOCUMENTS, **fields: Any) -> Any:
    return client.post(URL, json={"query": query, "documents": documents, **fields})


@pytest.mark.parametrize(("backend", "rounding"), [("native", 0.1), ("transformers", 2e-5)])
def test_scores_equal_transformers(
    backend: str, rounding: float, folder: Path, serve: Serve
) -> None:
    client = serve(folder, backend=backend, quantize="none")
    wanted = expected(folder, QUERY, DOCUMENTS)
    assert torch.tensor(wanted).std() > 1
    assert numbers(ask(client, raw_scores=True)) == pytest.approx(wanted, abs=rounding)
    scores = [1 / (1 + math.exp(-number)) for number in wanted]
    assert numbers(ask(client)) == pytest.approx(scores, abs=rounding)
    for name in ("instruction", "instruct"):
        asked = numbers(ask(client, raw_scores=True, **{name: "Find a river"}))
        wanted = expected(folder, QUERY, DOCUMENTS, "Find a river")
        assert asked == pytest.approx(wanted, abs=rounding)


def test_the_question_is_read_from_the_prefix_cache(folder: Path, serve: Serve) -> None:
    """What is cached changes no score."""
    client = serve(folder, backend="transformers", block_size=4)
    alone = [numbers(ask(client, documents=[text], cache_salt=text)) for text in DOCUMENTS[:3]]
    first = numbers(ask(client, documents=DOCUMENTS[:3], cache_salt="together"))
    again = numbers(ask(client, documents=DOCUMENTS[:3], cache_salt="together"))
    assert first == pytest.approx([score for (score,) in alone], abs=1e-5)
    assert again == pytest.approx(first, abs=1e-5)
    metrics = client.get("/metrics").text
    hits = [line for line in metrics.splitlines() if line.startswith("stonechat:prefix_cache_hits")]
    assert float(hits[0].split()[-1]) > 0


def test_one_token_and_the_activation(serve: Serve, tmp_path: Path) -> None:
    identity = "torch.nn.modules.linear.Identity"
    prompts = {"prompts": {"task": "Find a hill"}, "default_prompt_name": "task"}
    other = save(tmp_path / "other", false_token=None, activation_fn=identity, **prompts)
    wanted = expected(other, QUERY, DOCUMENTS, "Find a hill", None)
    assert numbers(ask(serve(other, backend="transformers"))) == pytest.approx(wanted, abs=2e-5)


def test_long_documents(folder: Path, serve: Serve) -> None:
    """A document is cut, and not what the template writes behind it."""
    client = serve(folder, backend="transformers")
    long = "a-river-and-a-hill-" * 30
    error = error_of(ask(client, documents=["x", long]))
    assert (error["param"], error["code"]) == ("documents[1]", "context_length_exceeded")
    frame = len(f"<S>Find it.</S><Q>{QUERY}</Q><D></D><A>no thoughts:")
    for limit, fields in ((256, {"truncation": True}), (99, {"truncate_prompt_tokens": 99})):
        response = ask(client, documents=["x", long], raw_scores=True, **fields)
        assert response.json()["usage"]["prompt_tokens"] == frame + 1 + limit
        cut = long[: limit - frame]
        assert numbers(response) == pytest.approx(expected(folder, QUERY, ["x", cut]), abs=2e-5)
    short = numbers(ask(client, documents=[long], max_tokens_per_doc=7, raw_scores=True))
    assert short == pytest.approx(expected(folder, QUERY, ["a-river"]), abs=2e-5)
    error = error_of(ask(client, query=long, truncation=True))
    assert error["code"] == "context_length_exceeded"


def test_a_long_question_is_cut_once(
    folder: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, long, lengths = serve(folder, backend="transformers"), "a-river" * 200, []
    encode = Tokenizer.encode

    def count(self: Tokenizer, text: str) -> list[int]:
        lengths.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(Tokenizer, "encode", count)
    fields = {"max_tokens_per_query": 7, "raw_scores": True}
    scores = numbers(ask(client, query=long, documents=DOCUMENTS, **fields))
    assert scores == pytest.approx(expected(folder, "a-river", DOCUMENTS), abs=2e-5)
    assert sum(length >= len(long) for length in lengths) == 1


def test_special_tokens_in_texts_can_be_text(folder: Path, serve: Serve) -> None:
    usual, as_text = serve(folder), serve(folder, special_tokens_as_text=True)
    assert numbers(ask(as_text)) == pytest.approx(numbers(ask(usual)), abs=1e-6)
    for fields in ({"documents": [EOS]}, {"documents": ["x"], "instruction": EOS}):
        counts = [
            ask(client, **fields).json()["usage"]["prompt_tokens"] for client in (usual, as_text)
        ]
        assert counts[1] - counts[0] == len(EOS) - 1


def test_a_template_that_leaves_out_a_text(folder: Path, serve: Serve) -> None:
    client = serve(folder, chat_template="{% for m in messages %}{{ m.role }}{% endfor %}")
    error = error_of(ask(client))
    assert error["code"] == "chat_template_error"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("1_LogitScore/config.json", {"true_token_id": 500}, "no tokens"),
        ("1_LogitScore/config.json", {"module_input_name": "scores"}, "'scores' is not served"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "does not fit"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"chat_template": {"chat_template": "other"}}},
            "chat_template is not served",
        ),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Tanh"}, "is not served"),
    ],
)
def test_what_is_not_served(name: str, change: Any, problem: str, tmp_path: Path) -> None:
    other = save(tmp_path / "other")
    write_json(other / name, json.loads((other / name).read_text()) | change)
    with pytest.raises(Exception, match=problem):
        build_engine(EngineConfig(model=str(other), device="cpu"), print)


def test_it_makes_no_embeddings_too(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="leave out --embeddings"):
        build_engine(EngineConfig(model=str(folder), device="cpu", embeddings=True), print)


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="it is not installed")
@pytest.mark.filterwarnings("ignore")
def test_scores_equal_sentence_transformers(serve: Serve, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    prompts = {"prompts": {"task": "Find a hill"}, "default_prompt_name": "task"}
    folder = save(tmp_path / "model", **prompts)
    library = CrossEncoder(str(folder), device="cpu")
    wanted = library.predict([(QUERY, document) for document in DOCUMENTS[:3]])
    scores = numbers(ask(serve(folder, backend="transformers"), documents=DOCUMENTS[:3]))
    assert scores == pytest.approx(wanted.tolist(), abs=1e-5)
