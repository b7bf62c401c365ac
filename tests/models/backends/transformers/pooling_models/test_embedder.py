"""Embedders equal transformers' own encoders, with each pooling written out for one text at a time.

Where sentence-transformers is installed, they equal that library too.
"""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from stonechat_models.backends.base import Text
from stonechat_models.backends.transformers.pooling_models.embedder import (
    NO_CONFIGURATION,
    TransformersEmbedder,
    load_embedder,
)
from stonechat_models.backends.transformers.pooling_models.pooling import ACTIVATIONS
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer
from tests.models.compiled_cache import use_model_cache
from tests.models.tiny_embedders import (
    FAMILIES,
    HIDDEN_SIZE,
    MAX_POSITIONS,
    VOCABULARY,
    save_embedder,
    save_encoder,
    tiny_encoder,
    write_json,
)
from tests.nightly import nightly

CPU = torch.device("cpu")
TEXTS = (
    "the cat sat on the mat",
    "a dog runs",
    "unable, the cat?",
    "x",
    "the dog sat on the mat . the cat runs on the mat",
)
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def load(folder: Path, **settings: Any) -> TransformersEmbedder:
    config = EngineConfig(model=str(folder), device="cpu", **settings)
    return load_embedder(resolve_model(config, print), config, CPU, print)


def encode(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_folder(folder)
    return [tokenizer.encode(text, add_special_tokens=True) for text in TEXTS]


def pooled(hidden: torch.Tensor, kind: str) -> torch.Tensor:
    """Pool the hidden states [T, H] of one text."""
    num_tokens = len(hidden)
    match kind:
        case "cls":
            return hidden[0]
        case "lasttoken":
            return hidden[-1]
        case "max":
            return hidden.max(dim=0).values
        case "mean":
            return hidden.sum(0) / num_tokens
        case "mean_sqrt_len_tokens":
            return hidden.sum(0) / math.sqrt(num_tokens)
    weights = [i + 1 for i in range(num_tokens)]
    return sum(w * row for w, row in zip(weights, hidden, strict=True)) / sum(weights)


@torch.inference_mode()
def hidden_states(family: str, ids: list[int]) -> torch.Tensor:
    """The last hidden states [T, H] of one text, alone and without padding."""
    return tiny_encoder(family)(input_ids=torch.tensor([ids])).last_hidden_state[0]


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.cosine_similarity(actual, expected).min() > 0.9999
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


KINDS = ("bert", "fnet", "t5", "qwen3")
"""An encoder with and without attention, one half of a pair, and a decoder."""


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"fnet"}))
def test_every_family_equals_transformers(family: str, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", family)
    ids = encode(folder)
    expected = torch.stack([pooled(hidden_states(family, row), "mean") for row in ids])
    expected = torch.nn.functional.normalize(expected, dim=-1)
    model = load(folder)
    assert_equal(model.embed([Text(row) for row in ids]), expected)
    assert model.info.max_model_len == 48
    assert not model.info.generates


@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling(pooling: str, family: str, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", family, pooling=(pooling,), normalize=False)
    ids = encode(folder)
    expected = torch.stack([pooled(hidden_states(family, row), pooling) for row in ids])
    model = load(folder)
    assert_equal(model.embed([Text(row) for row in ids]), expected)
    info = model.info.embedding
    assert info is not None
    assert (info.pooling, info.size, info.is_normalized) == (pooling, HIDDEN_SIZE, False)


def test_several_poolings_are_concatenated_in_a_fixed_order(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", pooling=("lasttoken", "cls", "mean"))
    ids = encode(folder)[0]
    hidden = hidden_states("bert", ids)
    expected = torch.cat([pooled(hidden, kind) for kind in ("cls", "mean", "lasttoken")])
    actual = load(folder).embed([Text(ids)])
    assert_equal(actual, torch.nn.functional.normalize(expected, dim=-1).unsqueeze(0))


def test_the_newer_form_of_a_pooling_is_read(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", normalize=False)
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]})
    ids = encode(folder)[0]
    hidden = hidden_states("bert", ids)
    expected = torch.cat([pooled(hidden, "mean"), pooled(hidden, "cls")])
    assert_equal(load(folder).embed([Text(ids)]), expected.unsqueeze(0))


def test_dense_layers_follow_the_pooling(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    linear = "torch.nn.modules.linear.Identity"
    dense = [
        {"out_features": 20, "bias": False, "activation_function": linear},
        {"out_features": 20, "use_residual": True},
        {"out_features": 12, "use_residual": True},
    ]
    folder = save_embedder(tmp_path / "model", dense=dense, normalize=False)
    ids = encode(folder)[0]
    layers = [load_file(folder / f"{i}_Dense/model.safetensors") for i in (2, 3, 4)]
    x = layers[0]["linear.weight"] @ pooled(hidden_states("bert", ids), "mean")
    for layer in layers[1:]:
        y = torch.tanh(layer["linear.weight"] @ x + layer["linear.bias"])
        x = y + (layer["residual.weight"] @ x if "residual.weight" in layer else x)
    model = load(folder)
    assert_equal(model.embed([Text(ids)]), x.unsqueeze(0))
    assert model.info.embedding is not None
    assert model.info.embedding.size == 12


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "qwen3", "t5"])
def test_a_text_in_company_equals_it_alone(family: str, tmp_path: Path) -> None:
    model = load(save_embedder(tmp_path / "model", family))
    texts = [Text(ids) for ids in encode(tmp_path / "model")]
    together = model.embed(texts)
    alone = torch.cat([model.embed([text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-4)


def test_tokens_of_a_prompt_are_left_out_of_the_pooling(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", normalize=False)
    ids = encode(folder)[0]
    expected = pooled(hidden_states("bert", ids)[3:], "mean")
    model = load(folder)
    texts = [Text(ids, num_unpooled=3), Text(ids[:2], num_unpooled=9)]
    actual = model.embed(texts)
    assert_equal(actual[:1], expected.unsqueeze(0))
    assert_equal(actual[1:], hidden_states("bert", ids[:2])[-1:])


def test_an_encoder_without_configuration_gets_a_mean_and_a_note(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "bert")
    ids = encode(folder)[0]
    config = EngineConfig(model=str(folder), device="cpu")
    engine, _ = build_engine(config, print)
    info = engine.model.info
    assert info.notes == (NO_CONFIGURATION,)
    assert info.max_model_len == MAX_POSITIONS
    expected = pooled(hidden_states("bert", ids), "mean")
    assert_equal(load(folder).embed([Text(ids)]), expected.unsqueeze(0))


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 63), ("qwen3", 64)])
def test_the_context_length_may_be_raised_to_the_positions(
    family: str, limit: int, tmp_path: Path
) -> None:
    folder = save_embedder(tmp_path / "model", family)
    model = load(folder, max_model_len=limit)
    assert model.info.max_model_len == limit
    assert model.embed([Text([5] * limit)]).isfinite().all()
    with pytest.raises(UnsupportedModelError, match=f"65 tokens exceeds this model's .* {limit}"):
        load(folder, max_model_len=65)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"quantize": "int8"}, "leave out --quantize"),
        ({"deterministic": True}, "leave out --deterministic"),
        ({"backend": "native"}, "it is an embedding model"),
    ],
)
def test_settings_that_embedders_do_not_have(
    settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = save_embedder(tmp_path / "model")
    with pytest.raises(ModelLoadError, match=problem):
        load(folder, **settings)


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "bert")
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"architectures": ["BertForTokenClassification"]})
    with pytest.raises(UnsupportedModelError, match="neither completes texts nor makes embeddings"):
        build_engine(EngineConfig(model=str(folder), device="cpu"), print)


def test_weights_of_the_encoder_must_be_complete_but_for_the_pooler(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_embedder(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    rest = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(rest) < len(weights)
    save_file(rest, path, metadata={"format": "pt"})
    load(folder)
    rest.pop("encoder.layer.1.attention.self.query.weight")
    save_file(rest, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"missing keys.*attention\.self\.query"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"in_features": 31}, "expects vectors of 31, not 32"),
        ({"out_features": 9}, "size mismatch"),
        ({"bias": False}, "Unexpected key"),
        ({"activation_function": "os.system"}, "'os.system' is not served"),
        ({"activation_function": "torch.nn.functional"}, "is not served"),
        ({"activation_function": "torch.nn.modules.activation.GLU"}, "only those of torch.nn"),
        ({"activation_function": "torch.nn.Linear"}, "only those of torch.nn"),
        ({"activation_function": "torch.nn.Softmax"}, "only those of torch.nn"),
    ],
)
def test_a_dense_layer_that_does_not_fit(
    change: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    folder = save_embedder(tmp_path / "model", dense=[{"out_features": 8}])
    path = folder / "2_Dense/config.json"
    write_json(path, json.loads(path.read_text()) | change)
    with pytest.raises(ModelLoadError, match=problem):
        load(folder)


def test_pickled_weights_of_a_dense_layer_need_permission(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save_embedder(tmp_path / "model", dense=[{"out_features": 8}])
    expected = load(folder).embed([Text([2, 5, 3])])
    safe = folder / "2_Dense/model.safetensors"
    torch.save(load_file(safe), folder / "2_Dense/pytorch_model.bin")
    safe.unlink()
    with pytest.raises(ModelLoadError, match="--allow-pickle"):
        load(folder)
    assert torch.equal(load(folder, allow_pickle=True).embed([Text([2, 5, 3])]), expected)
    (folder / "2_Dense/pytorch_model.bin").unlink()
    with pytest.raises(ModelLoadError, match="has no safetensors files"):
        load(folder)


def test_a_model_that_padding_changes_embeds_one_text_at_a_time(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", "fnet")
    lines: list[str] = []
    config = EngineConfig(model=str(folder), device="cpu")
    model = load_embedder(resolve_model(config, print), config, CPU, lines.append)
    assert lines == ["running model one text at a time: padding changes its vectors"]
    ids = encode(folder)
    expected = torch.stack([pooled(hidden_states("fnet", row), "mean") for row in ids])
    expected = torch.nn.functional.normalize(expected, dim=-1)
    assert_equal(model.embed([Text(row) for row in ids]), expected)


def test_a_model_that_does_not_compute_numbers_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_embedder(tmp_path / "model")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.LayerNorm.weight"].fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="not finite"):
        load(folder)


def test_a_model_without_positions_has_no_limit(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "xlnet")
    (folder / "tokenizer_config.json").unlink()
    assert load(folder).info.max_model_len == 512
    assert load(folder, max_model_len=9000).info.max_model_len == 9000


def test_a_model_with_layers_for_each_language_names_one(tmp_path: Path) -> None:
    only = load(save_encoder(tmp_path / "only", "xmod", default_language=None))
    named = load(save_encoder(tmp_path / "named", "xmod"))
    assert torch.equal(only.embed([Text([2, 5, 3])]), named.embed([Text([2, 5, 3])]))
    languages = ["en_XX", "de_DE"]
    folder = save_encoder(tmp_path / "model", "xmod", languages=languages, default_language=None)
    with pytest.raises(UnsupportedModelError, match=r"default_language in config\.json"):
        load(folder)
    path = folder / "config.json"
    vectors = []
    for language in ("en_XX", "de_DE"):
        write_json(path, json.loads(path.read_text()) | {"default_language": language})
        vectors.append(load(folder).embed([Text([2, 5, 3])]))
    assert not torch.allclose(*vectors)


def test_every_activation_is_element_by_element() -> None:
    numbers = torch.linspace(-3.0, 3.0, 12)
    for name in ACTIVATIONS:
        layer = getattr(torch.nn, name)()
        assert not list(layer.parameters())
        alone = torch.stack([layer(number) for number in numbers])
        torch.testing.assert_close(layer(numbers.view(3, 4)), alone.view(3, 4))


def test_a_vocabulary_of_words_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model_cache(tmp_path / "cache", monkeypatch)
    folder = save_embedder(tmp_path / "model")
    expected = encode(folder)
    (folder / "tokenizer.json").unlink()
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64})
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    files = resolve_model(EngineConfig(model=str(folder)), print)
    assert encode(files.folder) == expected
    assert files.embedder is not None


@pytest.mark.skipif(find_spec("sentence_transformers") is None, reason="it is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", [*KINDS, *nightly(*(f for f in FAMILIES if f not in KINDS))])
def test_every_family_equals_sentence_transformers(family: str, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = save_embedder(tmp_path / "model", family, pooling=POOLINGS)
    library = SentenceTransformer(str(folder), device="cpu")
    expected = torch.tensor(library.encode(list(TEXTS), batch_size=1))  # FNet cannot be padded
    assert_equal(load(folder).embed([Text(ids) for ids in encode(folder)]), expected)
