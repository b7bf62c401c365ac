"""Engines of both backends, from folders: tied heads, adapters, vocabularies that are too large.

The reference is plain transformers, with weights that numpy has changed.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken

from stonechat_models.backends.native.compile import find_compiler
from stonechat_models.checkpoint.resolve import fetch_model
from stonechat_models.config import EngineConfig
from stonechat_models.engine.engine import Engine
from stonechat_models.errors import EngineError, InvalidParamsError, ModelLoadError
from stonechat_models.runtime.async_engine import AsyncEngine
from stonechat_models.runtime.build import build_engine
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import GenerateRequest, ReasoningSpec, SamplingParams
from tests.models.compiled_cache import use_model_cache
from tests.models.engines import add, generate_all, greedy, run
from tests.models.tiny_adapters import BASE, projections, write_adapter
from tests.models.tiny_gguf import write_tiny_gguf
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import EOS, byte_level_backend

NUM_TOKENS = 6
PROMPTS = [[5, 9, 40], list(range(3, 25))]
VOCAB_SIZE = byte_level_backend().get_vocab_size()
LOGPROB_ERROR = {"transformers": 1e-3, "native": 0.1}
"""For logits with a spread of at most one. The native backend attends in bfloat16."""
SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 128, "intermediate_size": 160, "head_dim": 32}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_model_cache(tmp_path / "cache", patch)
        yield


@pytest.fixture(params=["transformers", "native"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    return str(request.param)


def save(folder: Path, family: str = "llama", **changes: Any) -> torch.nn.Module:
    """Save a tiny model with a byte-level tokenizer. Return it."""
    module = tiny_model(family, **SIZES | changes)
    module.save_pretrained(folder)  # type: ignore[operator]
    byte_level_backend().save(str(folder / "tokenizer.json"))
    config = {"eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return module.requires_grad_(False)  # type: ignore[no-any-return, operator]


def build(folder: Path, backend: str, **settings: Any) -> tuple[Engine, Tokenizer]:
    config = EngineConfig(
        model=str(folder),
        backend=backend,  # type: ignore[arg-type]
        device="cpu",
        kv_cache_bytes=1 << 22,
        threads=1,
        **settings,
    )
    return build_engine(config, lambda line: None)


def check(engine: Engine, module: torch.nn.Module, backend: str) -> None:
    """Compare the greedy tokens and the log-probabilities with those of the module.

    Where two tokens are as likely, up to the error, either may be chosen.
    """
    answers = generate_all(engine, PROMPTS, greedy(NUM_TOKENS, ignore_eos=True))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.inference_mode():
            logits = module(torch.tensor([prompt + answer.token_ids])).logits[0].double()
        rows = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        expected = rows.gather(1, torch.tensor(answer.token_ids).unsqueeze(1)).squeeze(1)
        actual = [entry.logprob for entry in answer.logprobs]
        assert len(actual) == NUM_TOKENS
        error = LOGPROB_ERROR[backend] * max(1.0, float(logits.std()))
        np.testing.assert_allclose(actual, expected, atol=error)
        np.testing.assert_allclose(rows.amax(1), expected, atol=error)


def change_weights(folder: Path, changes: Mapping[str, torch.Tensor | None]) -> None:
    """Replace or add weights of a folder; None removes one."""
    path = folder / "model.safetensors"
    weights = load_file(path) | dict(changes)
    save_file({k: v for k, v in weights.items() if v is not None}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_tied_model_with_a_head_of_its_own_uses_it(
    tmp_path: Path, backend: str, family: str
) -> None:
    folder = tmp_path / "model"
    module = save(folder, family, tie_word_embeddings=True)
    head = torch.randn(VOCAB_SIZE, 128, generator=torch.manual_seed(3)) * 0.2
    change_weights(folder, {"lm_head.weight": head})
    module.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)  # type: ignore[union-attr]
    engine, _ = build(folder, backend)
    check(engine, module, backend)


@pytest.mark.parametrize("stored", ["embedding", "copy", "head"])
def test_tied_ends_may_be_stored_under_either_name(
    tmp_path: Path, backend: str, stored: str
) -> None:
    folder = tmp_path / "model"
    module = save(folder, tie_word_embeddings=True)
    embedding = module.get_input_embeddings().weight.detach().clone()  # type: ignore[operator]
    if stored != "embedding":
        change_weights(folder, {"lm_head.weight": embedding})
    if stored == "head":
        change_weights(folder, {"model.embed_tokens.weight": None})
    engine, _ = build(folder, backend)
    check(engine, module, backend)
    assert engine.model.info.num_parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}])
def test_an_adapter_is_merged(tmp_path: Path, backend: str, config: dict[str, Any]) -> None:
    module = save(tmp_path / "model")
    before, _ = build(tmp_path / "model", backend)
    products = write_adapter(tmp_path / "mine", module, projections(), **config)
    engine, _ = build(tmp_path / "model", backend, adapter=str(tmp_path / "mine"))
    assert engine.model.info.adapter.startswith("mine (rank ")
    assert engine.model.info.backend == backend
    assert engine.model.info.weights_hash != before.model.info.weights_hash
    with pytest.raises(AssertionError):
        check(engine, module, backend)
    for name, product in products.items():
        rank = config.get("rank_pattern", {}).get(name.rsplit(".")[-1], 4)
        scale = 6 / (rank**0.5 if config else rank)
        weight = module.get_submodule(name).weight
        weight.copy_(torch.from_numpy(weight.double().numpy() + scale * product))
    check(engine, module, backend)


def test_adapters_beside_a_model_run_through_pytorch(tmp_path: Path) -> None:
    """The settings leave the backend open. Sequences of the base and of an adapter run together."""
    module = save(tmp_path / "model")
    products = write_adapter(tmp_path / "mine", module, projections())
    lines: list[str] = []
    settings = {"device": "cpu", "kv_cache_bytes": 1 << 22, "threads": 1}
    config = EngineConfig(
        model=str(tmp_path / "model"),
        lora=(f"first={tmp_path / 'mine'}", f"second = {tmp_path / 'mine'}"),
        **settings,  # type: ignore[arg-type]
    )
    engine, _ = build_engine(config, lines.append)
    assert [adapter.name for adapter in engine.model.info.adapters] == ["first", "second"]
    assert any("through PyTorch: LoRA adapters with names" in line for line in lines)
    with pytest.raises(ModelLoadError, match="native backend cannot run model: LoRA adapters"):
        build_engine(replace(config, backend="native"), lines.append)
    check(engine, module, "transformers")
    for name, product in products.items():
        module.get_submodule(name).weight.add_(torch.from_numpy(6 / 4 * product).float())  # type: ignore[operator]
    add_to_base = engine.add
    engine.add = lambda request, _: add_to_base(replace(request, adapter="second"))  # type: ignore[assignment, method-assign]
    check(engine, module, "transformers")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (["mine"], "--lora mine is not NAME=DIR"),
        (["=mine"], "is not NAME=DIR"),
        (["a=mine", "a=mine"], "two adapters have the name a"),
        (["model=mine"], "model is the model's own name"),
        (["a=./missing"], r"no folder \./missing with an adapter"),
    ],
)
def test_names_of_adapters_are_checked(tmp_path: Path, lora: list[str], message: str) -> None:
    module = save(tmp_path / "model")
    write_adapter(tmp_path / "mine", module, projections())
    named = [text.replace("mine", str(tmp_path / "mine")) for text in lora]
    with pytest.raises(ModelLoadError, match=message.replace("mine", ".*mine")):
        build(tmp_path / "model", "transformers", lora=tuple(named))


def test_an_adapter_of_the_head_is_merged(tmp_path: Path, backend: str) -> None:
    module = save(tmp_path / "model", tie_word_embeddings=False)
    products = write_adapter(tmp_path / "mine", module, ["lm_head"])
    engine, _ = build(tmp_path / "model", backend, adapter=str(tmp_path / "mine"))
    module.lm_head.weight.add_(torch.from_numpy(6 / 4 * products["lm_head"]).float())  # type: ignore[operator, union-attr]
    check(engine, module, backend)


def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path, backend: str) -> None:
    module = save(tmp_path / "model", tie_word_embeddings=True)
    write_adapter(tmp_path / "mine", module, ["lm_head"])
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight"):
        build(tmp_path / "model", backend, adapter=str(tmp_path / "mine"))


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 64}])
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, backend: str, change: dict[str, int]
) -> None:
    save(tmp_path / "model")
    other = tiny_model("llama", **SIZES | change)
    names = projections(change.get("num_hidden_layers", 2))
    write_adapter(tmp_path / "mine", other, names)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=f"belongs to {BASE}"):
        build(tmp_path / "model", backend, adapter=str(tmp_path / "mine"))


def test_an_adapter_makes_gguf_weights_float(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "llama")
    plain, _ = build(path, "transformers")
    write_adapter(tmp_path / "mine", plain.model.module, projections())  # type: ignore[attr-defined]
    engine, _ = build(path, "auto", adapter=str(tmp_path / "mine"))
    info = engine.model.info
    assert (info.backend, info.file_format) == ("transformers", "gguf")
    with pytest.raises(ModelLoadError, match="not into quantised weights"):
        build(path, "native", adapter=str(tmp_path / "mine"))
    beside, _ = build(path, "auto", lora=(f"mine={tmp_path / 'mine'}",))
    for prompt, expected in zip(PROMPTS, generate_all(engine, PROMPTS, greedy(6)), strict=True):
        add(beside, "a", prompt, greedy(6), adapter="mine")
        actual = run(beside)["a", 0]
        assert actual.token_ids == expected.token_ids
        for entry, other in zip(actual.logprobs, expected.logprobs, strict=True):
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.mark.parametrize("source", ["model", "none"])
def test_a_recommendation_that_no_request_may_have_is_noted(tmp_path: Path, source: str) -> None:
    save(tmp_path)
    content = {"temperature": 3.0, "top_k": 20.0, "eos_token_id": EOS}
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    engine, _ = build(tmp_path, "transformers", generation_config=source)
    defaults, notes = engine.model.info.sampling_defaults, engine.model.info.notes
    assert (defaults.temperature, defaults.top_k) == (None, 20 if source == "model" else None)
    assert ["temperature 3" in note for note in notes] == [True] * (source == "model")


def add_tokens(folder: Path, *tokens: AddedToken) -> None:
    backend = byte_level_backend()
    backend.add_tokens(list(tokens))
    backend.save(str(folder / "tokenizer.json"))


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path: Path, backend: str) -> None:
    save(tmp_path / "model", vocab_size=VOCAB_SIZE - 3)  # two added tokens, and one of the bytes
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json has 1 tokens .*belongs to another"):
        build(tmp_path / "model", backend)


def test_added_tokens_beyond_the_embedding_are_refused_in_prompts(
    tmp_path: Path, backend: str
) -> None:
    folder = tmp_path / "model"
    save(folder)
    add_tokens(folder, AddedToken("<pad>", special=True), AddedToken("<think>"))
    engine, tokenizer = build(folder, backend)
    assert tokenizer.vocab_size == VOCAB_SIZE + 2
    outside = tokenizer.encode("<think>")
    assert outside == [VOCAB_SIZE + 1]

    async def answer(prompt: list[int], prediction: tuple[int, ...] = (), **params: Any) -> int:
        request = GenerateRequest(
            request_id="r",
            prompt_token_ids=prompt,
            params=SamplingParams(max_tokens=4, ignore_eos=True, **params),
            prediction_token_ids=prediction,
        )
        return sum([d.num_tokens async for o in runner.generate(request) for d in o.deltas])

    async def check_all() -> None:
        await runner.start()
        with pytest.raises(InvalidParamsError, match=rf"'<think>' \(id {outside[0]}\)") as error:
            await answer([5, *outside, 6])
        assert error.value.param == "messages"
        assert await answer([5, 6], prediction=(5, *outside, 6)) == 4
        assert await answer([5, 6], min_tokens=4, stop_token_ids=tuple(outside)) == 4
        spec = ReasoningSpec("<think>", "<think>", starts_open=True, budget=1)
        with pytest.raises(EngineError, match="no embedding for its markers"):
            await answer([5, 6], reasoning=spec)
        await runner.shutdown()

    runner = AsyncEngine(engine, tokenizer)
    asyncio.run(check_all())


WITHOUT_PYTORCH = """
import sys
from stonechat_models.config import EngineConfig
from stonechat_models.runtime.build import build_engine
from stonechat_models.types import GenerateRequest, SamplingParams

config = EngineConfig(model=sys.argv[1], device=sys.argv[2], kv_cache_bytes=1 << 22, threads=1)
engine, _ = build_engine(config, lambda line: None)
kinds = [
    {"temperature": 0.0, "prompt_logprobs": 2},
    {"top_p": 0.9, "top_k": 7, "top_logprobs": 3, "logit_bias": {5: 1.0}},
    {"presence_penalty": 1.0, "repetition_penalty": 1.2, "min_tokens": 2},
]
for i, kind in enumerate(kinds):
    params = SamplingParams(max_tokens=3, seed=i, **kind)
    engine.add(GenerateRequest(request_id=str(i), prompt_token_ids=(5, 9, 40, 3), params=params))
outputs = []
while engine.has_work:
    outputs += engine.step()
assert len({o.request_id for o in outputs}) == len(kinds), outputs
assert not any(o.error for o in outputs), outputs
print("IMPORTED", *{"torch", "transformers", "gguf", "llguidance"} & set(sys.modules))
"""


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_gguf_file_is_served_on_the_cpu_without_importing_pytorch(
    tmp_path: Path, device: str
) -> None:
    """Importing it takes most of a second and 180 MB."""
    if find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    path = write_tiny_gguf(tmp_path / "tiny.gguf", "qwen3", "Q4_1")
    fetch_model(EngineConfig(model=str(path)), lambda line: None)  # converts it, with transformers
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYTORCH, str(path), device],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].split() == ["IMPORTED"]
