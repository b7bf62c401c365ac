"""Engines with a draft model, from folders: the same answers, its memory, and what is refused."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stonechat_models.config import EngineConfig
from stonechat_models.diagnostics.memory_plan import survey_model
from stonechat_models.engine.engine import Engine
from stonechat_models.engine.speculation.step_costs import StepCosts
from stonechat_models.errors import ModelLoadError, UnsupportedModelError
from stonechat_models.runtime.build import build_engine
from stonechat_models.runtime.draft import refuse_draft_model
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import SamplingParams
from tests.models.compiled_cache import use_model_cache
from tests.models.engines import generate_all
from tests.models.runtime.test_build import SIZES, backend, save
from tests.models.tiny_models import tiny_model
from tests.models.tiny_tokenizers import byte_level_backend
from tests.nightly import nightly

__all__ = ["backend"]
PROMPTS = [[5, 9, 40], list(range(3, 25))]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        use_model_cache(tmp_path / "cache", patch)
        yield


class SlowSteps(StepCosts):
    """A step takes a second, with draft tokens or without: it pays to draft."""

    def plain_seconds(self, num_seqs: int) -> float:
        return 1.0

    def observe(self, num_seqs: int, seconds: float, num_drafts: int = 0) -> None:
        pass

    def curve(self, num_seqs: int, num_drafts: int) -> list[float]:
        return [1.0] * (num_drafts + 1)


def build(folder: Path, draft: Path | None, backend: str = "native", **changes: object) -> Engine:
    config = EngineConfig(
        model=str(folder),
        draft_model=None if draft is None else str(draft),
        backend=backend,  # type: ignore[arg-type]
        dtype="float32" if backend == "transformers" else "auto",
        device="cpu",
        max_model_len=128,
        kv_cache_bytes=1 << 20,
    )
    engine, _ = build_engine(replace(config, **changes), lambda line: None)  # type: ignore[arg-type]
    assert isinstance(engine, Engine)
    return engine


@pytest.mark.parametrize("is_itself", [True, *nightly(False)], ids=["itself", "smaller"])
def test_answers_are_the_same_with_a_draft_model(
    tmp_path: Path, backend: str, is_itself: bool
) -> None:
    """To the bit on the native backend: tokens and log-probabilities, with sampling."""
    folder, small = tmp_path / "model", tmp_path / "small"
    save(folder)
    save(small, "qwen2", num_hidden_layers=1)
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=24, top_logprobs=2)
    expected = generate_all(build(folder, None, backend), PROMPTS, params)
    engine = build(folder, folder if is_itself else small, backend)
    control = engine.speculation.control
    assert control is not None
    control.costs = SlowSteps()
    results = generate_all(engine, PROMPTS, params)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    if backend == "native":
        assert [r.logprobs for r in results] == [r.logprobs for r in expected]
    stats = engine.stats()
    assert stats.num_model_drafted_tokens > 0
    if is_itself:
        assert stats.num_accepted_model_draft_tokens > 0.9 * stats.num_model_drafted_tokens


def test_both_kv_caches_share_the_memory(tmp_path: Path, backend: str) -> None:
    folder, small = tmp_path / "model", tmp_path / "small"
    save(folder)
    save(small, num_hidden_layers=1)
    alone = build(folder, None, backend, kv_cache_bytes=1 << 19, max_num_seqs=4096)
    engine = build(folder, small, backend, kv_cache_bytes=1 << 19, max_num_seqs=4096)
    info = engine.model.info
    assert info.draft is not None
    assert info.draft.kv_bytes_per_token > 0
    assert info.draft.num_draft_tokens == 8
    assert info.draft.weight_bytes > 0
    both = info.kv_bytes_per_token + info.draft.kv_bytes_per_token
    assert info.num_blocks == (1 << 19) // both // info.block_size
    assert info.num_blocks < alone.model.info.num_blocks
    assert engine.speculation.model is not None
    assert engine.speculation.model.model.info.num_blocks == info.num_blocks


def test_the_plan_knows_what_a_draft_model_takes(tmp_path: Path, backend: str) -> None:
    folder, small = tmp_path / "model", tmp_path / "small"
    save(folder)
    save(small, num_hidden_layers=1)
    config = EngineConfig(
        model=str(folder),
        draft_model=str(small),
        backend=backend,  # type: ignore[arg-type]
        dtype="float32" if backend == "transformers" else "auto",
        device="cpu",
        max_model_len=128,
        kv_cache_bytes=1 << 19,
        max_num_seqs=4096,
    )
    survey = survey_model(config, lambda line: None)
    engine, _ = build_engine(config, lambda line: None)
    info, form = engine.model.info, next(form for form in survey.forms if form.is_default)
    assert survey.refusal is None
    assert survey.draft is not None
    assert info.draft is not None
    assert survey.draft.weight_bytes == info.draft.weight_bytes
    assert survey.draft.kv_bytes_per_token == info.draft.kv_bytes_per_token
    assert form.kv_bytes_per_token == info.kv_bytes_per_token + info.draft.kv_bytes_per_token
    assert form.kv_tokens == info.kv_capacity_tokens
    refused = survey_model(replace(config, overlap=True), lambda line: None)
    assert "--overlap" in (refused.refusal or "")


def test_a_model_of_other_tokens_is_refused_by_the_first_difference(tmp_path: Path) -> None:
    folder, other = tmp_path / "model", tmp_path / "other"
    save(folder)
    save(other)
    path = other / "tokenizer.json"
    text = byte_level_backend().to_str()
    tokenizer = Tokenizer.from_folder(folder)
    vocabulary = tokenizer.vocabulary()
    first, second = sorted(vocabulary, key=vocabulary.__getitem__)[40:42]
    swapped = text.replace(f'"{first}":40', '"#":40').replace(f'"{second}":41', f'"{first}":41')
    path.write_text(swapped.replace('"#":40', f'"{second}":40'), encoding="utf-8")
    expected = f"the token 40 is {first!r} in one and {second!r} in the other"
    with pytest.raises(ModelLoadError, match=re.escape(expected)):
        build(folder, other)


def test_vocabularies_that_differ_in_length_are_refused(tmp_path: Path) -> None:
    from stonechat_models.text.same_vocabulary import vocabulary_difference

    save(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)

    class Longer(Tokenizer):
        def __init__(self, num_more: int) -> None:
            self.num_more = num_more

        def vocabulary(self) -> dict[str, int]:
            known = tokenizer.vocabulary()
            return known | {f"[PAD{i}]": len(known) + i for i in range(self.num_more)}

    assert vocabulary_difference(tokenizer, tokenizer) is None
    assert vocabulary_difference(tokenizer, Longer(1)) is None
    message = vocabulary_difference(tokenizer, Longer(2000))
    assert message is not None
    assert "2," in message


def test_a_token_that_stands_for_nothing_may_have_a_meaning_in_one_model(tmp_path: Path) -> None:
    """As the placeholder of images has, in a GGUF model with its vision part."""
    from stonechat_models.text.same_vocabulary import vocabulary_difference

    save(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)

    class Other(Tokenizer):
        def __init__(self, token: str) -> None:
            self.token = token

        def vocabulary(self) -> dict[str, int]:
            known = tokenizer.vocabulary()
            return {self.token if i == 40 else token: i for token, i in known.items()}

    image, unused = Other("<image_soft_token>"), Other("<unused99>")
    assert vocabulary_difference(image, unused) is None
    assert vocabulary_difference(unused, image) is None
    assert "the token 40 is" in str(vocabulary_difference(image, tokenizer))


def test_settings_that_exclude_a_draft_model_are_named(tmp_path: Path) -> None:
    config = EngineConfig(model="m", draft_model="d")
    refuse_draft_model(config, "cpu")
    for changes, device, reason in (
        ({}, "cuda", "on the CPU only, not on cuda"),
        ({"overlap": True}, "cpu", "--overlap"),
        ({"device_map": "auto"}, "cpu", "device map"),
    ):
        with pytest.raises(UnsupportedModelError, match=reason):
            refuse_draft_model(replace(config, **changes), device)  # type: ignore[arg-type]


def test_a_model_with_a_recurrent_state_is_refused(tmp_path: Path) -> None:
    folder, recurrent = tmp_path / "model", tmp_path / "recurrent"
    save(folder)
    module: torch.nn.Module = tiny_model("mamba", vocab_size=SIZES["vocab_size"])
    module.save_pretrained(recurrent)  # type: ignore[operator]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, recurrent / name)
    for model, draft in ((folder, recurrent), (recurrent, folder)):
        with pytest.raises(UnsupportedModelError, match="keeps more of a sequence than keys"):
            build(model, draft, "auto")
