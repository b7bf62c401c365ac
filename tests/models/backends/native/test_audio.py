"""Models that hear whose language model is compiled answer as plain transformers does."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from stonechat_models.backends.native import footprint, tower_part
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.config import EngineConfig
from stonechat_models.runtime.build import build_engine
from tests.models.engines import add, greedy, run
from tests.models.media.audio_prompts import sound
from tests.models.media.compiled_models import NUM_OUTPUT, check, make_audio_model

CLIPS = [sound(seconds, seed) for seed, seconds in enumerate((1.1, 1.7, 3.1))]
NAMES = ("audioflamingo3", "glmasr", "musicflamingo", "qwen2_audio", "qwen3_asr", "voxtral")


def engine_of(folder: Path, **settings: Any) -> Any:
    config = EngineConfig(
        model=str(folder), device="cpu", threads=1, max_model_len=2048, backend="native", **settings
    )
    return build_engine(config, lambda line: None)[0]


@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_plain_transformers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_audio_model(tmp_path / "model", name, monkeypatch)
    prompts = {
        "one": model.prompt("Listen: # What is it?", CLIPS[0]),
        "two": model.prompt("Is # like # or not?", *CLIPS[1:3]),
        "text": model.prompt("No sound at all"),
    }
    params = greedy(NUM_OUTPUT, ignore_eos=True)
    for max_batch_tokens in (2048, 48):
        engine = engine_of(tmp_path / "model", max_batch_tokens=max_batch_tokens, max_num_seqs=8)
        assert engine.model.info.audio is not None, engine.model.info.audio_refusal
        assert engine.model.info.audio.token_id == model.token_id
        for key, prompt in prompts.items():
            add(engine, key, prompt.token_ids, params, media=prompt.media)
        results = run(engine)
        for key, prompt in prompts.items():
            check(model, results[key, 0], prompt)
    num_pieces = sum(len(prompt.media) for prompt in prompts.values())
    assert engine.stats().num_encoded_audio == num_pieces


def test_the_tower_is_loaded_alone_and_with_the_first_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_audio_model(tmp_path / "model", "qwen3_asr", monkeypatch)
    engine = engine_of(tmp_path / "model")
    config = EngineConfig(model=str(tmp_path / "model"), device="cpu")
    planned = footprint(read_headers(config, lambda line: None), config)
    add(engine, "text", [5, 6, 7], greedy(2))
    run(engine)
    assert engine.model._towers._tower is None
    prompt = model.prompt("#", CLIPS[0])
    add(engine, "clip", prompt.token_ids, greedy(2), media=prompt.media)
    run(engine)
    inner = engine.model._towers._tower.module.model
    assert sum(p.numel() for p in inner.language_model.parameters()) < 200
    towers = (model.module.model.audio_tower, model.module.model.multi_modal_projector)
    tower_bytes = sum(p.nbytes for tower in towers for p in tower.parameters())
    assert planned.weight_bytes == engine.model.info.weight_bytes + tower_bytes


def test_why_no_audio_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_audio_model(tmp_path / "model", "voxtral", monkeypatch).folder
    weights = load_file(folder / "model.safetensors")
    layer = [name for name in weights if "audio_tower" in name and ".layers.1." in name]
    cut = {name: weight for name, weight in weights.items() if name not in layer[:1]}
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    info = engine_of(folder).model.info
    assert (info.audio, info.audio_refusal) == (None, "weights of its audio tower are missing")
    monkeypatch.setattr(tower_part, "audio_packages_refusal", lambda: "no soundfile")
    assert engine_of(folder).model.info.audio_refusal == "no soundfile"
