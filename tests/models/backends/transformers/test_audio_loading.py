"""Models that hear, loaded from folders: why some take no audio, and what stays of their towers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stonechat_models.backends.transformers.kinds import auto_class
from stonechat_models.backends.transformers.loading.load import load_transformers_model
from stonechat_models.backends.transformers.media_checks import audio as audio_check
from stonechat_models.backends.transformers.media_checks.audio import audio_case, with_audio
from stonechat_models.backends.transformers.tower_parts import tower_parts
from stonechat_models.checkpoint.hf_config import parse_config
from stonechat_models.checkpoint.resolve import resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import UnsupportedModelError
from stonechat_models.media.hf_processor import HFProcessor
from tests.models.engines import CPU
from tests.models.media.audio_prompts import AudioModel, sound

NAME = "qwen3_asr"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    return AudioModel(tmp_path_factory.mktemp("audio") / NAME, NAME)


def load(folder: Path, **settings: Any) -> Any:
    sizes = {"dtype": "float32", "max_model_len": 256, "kv_cache_bytes": 1 << 20}
    config = EngineConfig(
        model=str(folder), backend="transformers", device="cpu", **sizes, **settings
    )
    return load_transformers_model(resolve_model(config, print), config, CPU, lambda line: None)


def test_the_tower_stays_as_it_is_when_weights_are_quantised(model: AudioModel) -> None:
    prompt = model.prompt("#", sound(1.3))
    with torch.inference_mode():
        expected = model.module.get_audio_features(
            prompt.inputs["input_features"], prompt.inputs["input_features_mask"]
        )
    loaded = load(model.folder, quantize="int8")
    assert loaded.info.audio is not None
    assert loaded.info.audio_refusal == loaded.info.image_refusal == ""
    features = loaded.encode_media(prompt.media[0])
    torch.testing.assert_close(features.embeddings, expected.pooler_output)
    kinds = {type(part) for part in tower_parts(loaded.module)}
    assert torch.nn.Linear in kinds


def test_a_step_that_differs_from_the_models_own_code_is_a_reason(model: AudioModel) -> None:
    loaded = load(model.folder)
    case = audio_case(loaded.module, model.processor)
    assert not isinstance(case, str)
    loaded = load(model.folder)
    other = replace(case, embeddings=case.embeddings.flip(0))
    info = with_audio(loaded, other)
    assert info.audio is None
    assert "a step with audio gives other logits than the model's own" in info.audio_refusal
    assert with_audio(loaded, case).audio == case.info


def test_why_models_take_no_audio(
    model: AudioModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = model.processor
    assert audio_case(model.module.model.language_model, processor) == ""
    assert "several devices" in str(audio_case(model.module, processor, num_ranks=2))
    assert audio_case(model.module, "no processor") == "no processor"

    def fail(*arguments: Any, **settings: Any) -> None:
        raise ValueError("no such tower")

    monkeypatch.setattr(model.module.model.audio_tower, "forward", fail)
    assert audio_case(model.module, processor) == "a forward pass with audio fails: no such tower"
    copied = shutil.copytree(model.folder, tmp_path / "copied")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (copied / name).unlink()
    info = load(copied).info
    assert info.audio is None
    assert "audio processor" in info.audio_refusal


def test_the_memory_of_the_tower_is_that_of_the_longest_clip(
    model: AudioModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(model.folder)
    case = audio_case(model.module, model.processor)
    loaded.info = replace(loaded.info, device="cuda:0")
    clips = []

    def measure(_: Any, clip: Any, *others: Any) -> int:
        clips.append(clip)
        return 77

    monkeypatch.setattr(audio_check, "tower_memory", measure)
    monkeypatch.setattr(audio_check, "LONG_SECONDS", (20.0, 3.0))
    prepare = HFProcessor.prepare

    def short(self: HFProcessor, samples: Any) -> Any:
        if len(samples) > 16 * self.sampling_rate:
            raise audio_check.UnusableMediaError("too_long", "is longer than this model takes")
        return prepare(self, samples)

    monkeypatch.setattr(HFProcessor, "prepare", short)
    info = with_audio(loaded, case, model.processor)
    assert info.audio is not None
    assert info.audio.encoding_bytes == 77
    assert clips[0].num_tokens == prepare(model.processor, sound(3.0))[1]


@pytest.mark.parametrize("name", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_of_a_model_that_also_speaks_the_thinker_is_loaded(name: str, tmp_path: Path) -> None:
    """Published folders have a talker beside it, whose weights are not read."""
    thinker = AudioModel(tmp_path / "thinker", f"{name}_thinker")
    whole = shutil.copytree(thinker.folder, tmp_path / name)
    config = json.loads((whole / "config.json").read_text())
    speaker = {"model_type": name, "architectures": ["Speaker"], "dtype": "float32"}
    (whole / "config.json").write_text(json.dumps({**speaker, "thinker_config": config}))
    weights = load_file(whole / "model.safetensors")
    named = {f"thinker.{name}": weight for name, weight in weights.items()}
    talker = {"talker.model.norm.weight": torch.zeros(4)}
    save_file({**named, **talker}, whole / "model.safetensors", metadata={"format": "pt"})
    model = load(whole)
    assert model.info.audio is not None
    assert model.info.architecture == "Speaker"
    state = thinker.module.state_dict()
    assert model.module.state_dict().keys() == state.keys()
    for key, weight in model.module.state_dict().items():
        assert torch.equal(weight, state[key])


def test_a_model_with_other_weights_of_text_beside_audio_is_refused() -> None:
    config = parse_config({"model_type": "granite_speech"}, "config.json")
    with pytest.raises(UnsupportedModelError, match="granite_speech switch to other weights"):
        auto_class(config)
