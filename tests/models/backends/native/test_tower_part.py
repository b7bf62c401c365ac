"""Image-text models whose language model is compiled answer as plain transformers does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.backends.native import footprint
from stonechat_models.backends.native.plan.composites import ONLY_GGUF
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.config import EngineConfig
from stonechat_models.media import tower
from stonechat_models.model_info import VideoInfo
from stonechat_models.runtime.build import build_engine
from tests.models.engines import add, greedy, run
from tests.models.media.compiled_models import (
    NUM_OUTPUT,
    TEXT_PARTS,
    check,
    make_model,
)
from tests.models.media.prompts import noise
from tests.models.media.video_prompts import VideoModel
from tests.models.media.videos import pictures, video_file
from tests.nightly import nightly

SIZES = ((90, 130), (64, 64), (200, 70), (33, 50), (120, 120), (64, 90), (150, 60), (80, 80))
IMAGES = [noise(size, seed) for seed, size in enumerate(SIZES)]
USUAL = ("qwen3_vl", "qwen3_5", "gemma3")
OTHERS = sorted(TEXT_PARTS.keys() - set(USUAL) - ONLY_GGUF)


def engine_of(folder: Path, **settings: Any) -> Any:
    config = EngineConfig(
        model=str(folder), device="cpu", threads=1, max_model_len=4096, backend="native"
    )
    return build_engine(replace(config, **settings), lambda line: None)[0]


@pytest.mark.parametrize("name", [*USUAL, *nightly(*OTHERS)])
def test_answers_equal_plain_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one, two, eight images and none in one step, in chunks, and cached with two choices."""
    model = make_model(tmp_path / "model", name, monkeypatch)
    images = IMAGES[:4] if name == "llava" else IMAGES  # its context holds no more
    prompts = {
        "one": model.prompt("Look: # What is it?", IMAGES[0]),
        "two": model.prompt("Is # like # or not?", *IMAGES[1:3]),
        "text": model.prompt("No image at all"),
        "more": model.prompt("a#b#c#d#" * (len(images) // 4), *images),
    }
    for max_batch_tokens in (8192, 112):
        engine = engine_of(tmp_path / "model", max_batch_tokens=max_batch_tokens)
        for key, prompt in prompts.items():
            params = greedy(NUM_OUTPUT, ignore_eos=True)
            add(engine, key, prompt.token_ids, params, media=prompt.media)
        results = run(engine)
        for key, prompt in prompts.items():
            check(model, results[key, 0], prompt)
    turn = model.prompt("Look: # What is it? And #", IMAGES[0], IMAGES[4])
    params = greedy(NUM_OUTPUT, n=2, ignore_eos=True)
    add(engine, "turn", turn.token_ids, params, media=turn.media)
    results = run(engine)
    if name != "llava_onevision":  # it prepares the image otherwise now
        assert results["turn", 0].num_cached_tokens > 0
    for i in range(2):
        check(model, results["turn", i], turn)


@pytest.mark.parametrize(
    "name", ["qwen3_vl", *nightly("qwen2_5_vl", "qwen3_5", "internvl", "smolvlm")]
)
def test_answers_to_videos_equal_plain_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", name, monkeypatch, VideoModel)
    first, second, _ = (video_file(pictures(20, size)) for size in model.family.sizes)
    prompts = {
        "one": model.video_prompt("Look: @ What happens?", first),
        "two": model.video_prompt("Is @ like @ or not?", second, first),
    }
    engine = engine_of(tmp_path / "model")
    assert engine.model.info.video == VideoInfo(token_id=model.video_id)
    for key, prompt in prompts.items():
        params = greedy(NUM_OUTPUT, ignore_eos=True)
        add(engine, key, prompt.token_ids, params, media=prompt.media)
    results = run(engine)
    for key, prompt in prompts.items():
        check(model, results[key, 0], prompt)

    assert engine.stats().num_image_cache_hits > 0


def test_a_tower_is_loaded_alone_and_with_the_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", "qwen3_vl", monkeypatch)
    engine = engine_of(tmp_path / "model")
    part = engine.model._towers
    config = EngineConfig(model=str(tmp_path / "model"), device="cpu")
    planned = footprint(read_headers(config, lambda line: None), config)
    add(engine, "text", [5, 6, 7], greedy(2))
    run(engine)
    assert part._tower is None
    prompt = model.prompt("#", IMAGES[0])
    add(engine, "image", prompt.token_ids, greedy(2), media=prompt.media)
    run(engine)
    inner = part._tower.module.model
    whole = model.module.model
    text_sizes = [sum(p.numel() for p in m.language_model.parameters()) for m in (inner, whole)]
    assert text_sizes[0] * 50 < text_sizes[1]
    tower_bytes = sum(p.nbytes for p in whole.visual.parameters())
    assert planned.weight_bytes == engine.model.info.weight_bytes + tower_bytes
    expected = whole.visual.state_dict()
    for name, weight in inner.visual.state_dict().items():
        assert torch.equal(weight, expected[name])


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def without(names: Sequence[str]) -> Callable[[dict[str, torch.Tensor]], object]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        chosen = [name for name in weights if all(part in name for part in names)]
        assert chosen
        for name in chosen:
            del weights[name]

    return change


def test_a_tower_that_is_not_whole_is_refused_and_text_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model", "qwen3_vl", monkeypatch)
    whole = (tmp_path / "model" / "model.safetensors").read_bytes()

    def refusal(change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        (tmp_path / "model" / "model.safetensors").write_bytes(whole)
        rewrite(tmp_path / "model", change)
        engine = engine_of(tmp_path / "model")
        assert engine.model.info.images is None
        add(engine, "text", [5, 6, 7], greedy(2))
        assert run(engine)["text", 0].error is None
        reason: str = engine.model.info.image_refusal
        return reason

    assert "missing" in refusal(without(["visual.blocks.1.mlp", "weight"]))
    assert "missing" in refusal(without(["visual.blocks.2."]))
    assert "missing" in refusal(without(["visual."]))
    (tmp_path / "model" / "model.safetensors").write_bytes(whole)
    for file in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "model" / file).unlink()
    assert "image processor" in refusal(lambda weights: None)


def test_a_tower_that_cannot_be_loaded_fails_its_requests_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(tmp_path / "model", "qwen3_vl", monkeypatch)
    rewrite(tmp_path / "model", without(["visual.merger.norm.weight"]))
    engine = engine_of(tmp_path / "model")
    prompt = model.prompt("#", IMAGES[0])
    add(engine, "image", prompt.token_ids, greedy(2), media=prompt.media)
    add(engine, "text", [5, 6, 7], greedy(2))
    results = run(engine)
    assert "cannot be encoded" in results["image", 0].error
    assert "weights of the tower are missing" in caplog.text
    assert results["text", 0].error is None
    monkeypatch.setattr(tower, "load_tower", None)  # it is not tried again
    add(engine, "again", prompt.token_ids, greedy(2), media=prompt.media)
    caplog.clear()
    assert "cannot be encoded" in run(engine)["again", 0].error
    assert "weights of the tower are missing" in caplog.text


PUBLISHED_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen2_vl": (("model.visual.", "visual."), ("model.language_model.", "model.")),
    "gemma3": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    "llava": (
        ("lm_head.", "language_model.lm_head."),
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
}
"""The names of transformers' modules, and those of files that older versions wrote."""


def test_a_config_may_leave_its_dtype_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model", "qwen2_vl", monkeypatch)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "auto"}))
    engine = engine_of(tmp_path / "model")
    prompt = model.prompt("Look: # What is it?", IMAGES[0])
    params = greedy(NUM_OUTPUT, ignore_eos=True)
    add(engine, "one", prompt.token_ids, params, media=prompt.media)
    check(model, run(engine)["one", 0], prompt)


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_weights_under_the_names_of_older_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(tmp_path / "model", name, monkeypatch)
    stored = {}
    for module_name, weight in model.module.state_dict().items():
        for usual, published in PUBLISHED_NAMES[name]:
            if module_name.startswith(usual):
                module_name = published + module_name.removeprefix(usual)
                break
        stored[module_name] = weight.clone()
    save_file(stored, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    engine = engine_of(tmp_path / "model")
    prompt = model.prompt("Look: # What is it?", IMAGES[0])
    params = greedy(NUM_OUTPUT, ignore_eos=True)
    add(engine, "one", prompt.token_ids, params, media=prompt.media)
    check(model, run(engine)["one", 0], prompt)


NUM_BLOCKS = {"qwen3_vl": 14, "gemma3": 17}
"""Room for the prompts of two requests, but not for their answers."""


@pytest.mark.parametrize("name", ["qwen3_vl", *nightly("gemma3")])
def test_drafts_preemption_and_an_int8_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens with draft tokens as without, and after a preemption as before."""
    model = make_model(tmp_path / "model", name, monkeypatch)
    prompts = [model.prompt(f"{i} Look: # abc abc abc abc abc", IMAGES[i]) for i in range(3)]
    settings: dict[str, Any] = {"max_model_len": 192, "kv_cache_dtype": "int8"}
    answers, engines = [], []
    for changes in (
        {"prompt_lookup": True},
        {"prompt_lookup": False},
        {"prompt_lookup": False, "prefix_caching": False, "num_blocks": NUM_BLOCKS[name]},
    ):
        num_blocks = changes.pop("num_blocks", None)
        if num_blocks is not None:
            per_token = engines[0].model.info.kv_bytes_per_token
            changes["kv_cache_bytes"] = num_blocks * 16 * per_token
        engine = engine_of(tmp_path / "model", **{**settings, **changes})
        for i, prompt in enumerate(prompts):
            params = greedy(60, ignore_eos=True)
            add(engine, str(i), prompt.token_ids, params, media=prompt.media)
        results = run(engine)
        answers.append([results[str(i), 0].token_ids for i in range(3)])
        engines.append(engine)
    assert answers[0] == answers[1] == answers[2]
    stats = [engine.stats() for engine in engines]
    assert all(s.num_failed_steps == 0 for s in stats)
    assert stats[2].num_preemptions > 0
    assert stats[0].num_accepted_draft_tokens > 0
