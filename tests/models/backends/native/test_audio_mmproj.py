"""GGUF models with their audio part in a file of its own answer as plain transformers does."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from stonechat_models.checkpoint.gguf.projectors import vision
from stonechat_models.checkpoint.headers import read_headers
from stonechat_models.checkpoint.resolve import ModelFiles, resolve_model
from stonechat_models.config import EngineConfig
from stonechat_models.errors import ModelLoadError
from stonechat_models.media.hf_processor import HFProcessor
from stonechat_models.runtime.build import build_engine
from tests.models.engines import add, greedy, run
from tests.models.media.audio_prompts import AudioModel, sound
from tests.models.media.compiled_models import NUM_OUTPUT, check, make_audio_model
from tests.models.media.prompts import Prompt, noise
from tests.models.tiny_audio_mmproj import write_audio_mmproj, write_audio_text

CLIPS = [sound(seconds, seed) for seed, seconds in enumerate((1.1, 1.7, 1.4))]


@pytest.fixture(autouse=True)
def empty_cache(model_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "GEMMA4_TOKENS", 70)  # as the family's own processor has it


def prompts_of(model: AudioModel) -> dict[str, Prompt]:
    return {
        "one": model.prompt("Listen: # What is it?", CLIPS[0]),
        "two": model.prompt("Is # like # or not?", *CLIPS[1:]),
        "text": model.prompt("No sound at all"),
    }


def engine_of(path: Path, backend: str) -> tuple[Any, Path]:
    config = EngineConfig(
        model=str(path), device="cpu", threads=1, max_model_len=2048, backend=backend
    )
    engine, tokenizer = build_engine(config, lambda line: None)
    assert engine.model.info.audio is not None, engine.model.info.audio_refusal
    return engine, tokenizer.path.parent


def written(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[AudioModel, Path]:
    """Return a tiny model, and the path of its text's file. That of the audio part is beside it."""
    place = folder / "folder"
    is_compiled = name != "gemma4"
    model = make_audio_model(place, name, monkeypatch) if is_compiled else AudioModel(place, name)
    write_audio_mmproj(model, name, folder / "mmproj-F32.gguf")
    return model, write_audio_text(model, name, folder / "model-F32.gguf")


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("qwen2_audio", "native"),
        ("voxtral", "native"),
        ("qwen3_asr", "native"),
        ("gemma4", "transformers"),
        *(
            pytest.param(name, "transformers", marks=pytest.mark.nightly)
            for name in ("qwen2_audio", "voxtral", "qwen3_asr")
        ),
    ],
)
def test_answers_equal_plain_transformers(
    name: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prompts and the answers to them are those of the model's folder."""
    model, path = written(name, tmp_path, monkeypatch)
    engine, folder = engine_of(path, backend)
    prompts = prompts_of(model)
    model.processor = HFProcessor(folder, "audio", engine.model.info.audio.token_id)
    for key, prompt in prompts_of(model).items():
        assert prompt.token_ids == prompts[key].token_ids
        assert prompt.media == prompts[key].media
    if name == "gemma4":
        eyes = HFProcessor(folder, "image", engine.model.info.images.token_id)
        text = "Look: @ Listen: # What?"
        prompts["both"] = model.prompt_with_image(text, eyes, noise((90, 130)), CLIPS[0])
    for key, prompt in prompts.items():
        params = greedy(NUM_OUTPUT, ignore_eos=True)
        add(engine, key, prompt.token_ids, params, media=prompt.media)
    results = run(engine)
    for key, prompt in prompts.items():
        check(model, results[key, 0], prompt)


def test_a_template_of_texts_alone_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of Qwen3-ASR, which the converter writes."""
    model, path = written("qwen3_asr", tmp_path, monkeypatch)
    (model.folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    write_audio_text(model, "qwen3_asr", path)
    tokenizer = AutoTokenizer.from_pretrained(resolve(path).folder)
    user = {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}
    assert tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\n<|im_end|>\n"
        "<|im_start|>user\n<|audio_start|><|audio_pad|><|audio_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def resolve(path: Path, **settings: Any) -> ModelFiles:
    return resolve_model(EngineConfig(model=str(path), **settings), lambda line: None)


def test_a_part_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = written("voxtral", tmp_path, monkeypatch)
    part = tmp_path / "mmproj-F32.gguf"
    write_audio_mmproj(model, "voxtral", part, skip="clip.audio.num_mel_bins")
    with pytest.raises(ModelLoadError, match=r"audio\.num_mel_bins is missing"):
        resolve(path, mmproj=str(part))
    config = EngineConfig(model=str(path), mmproj=str(part))
    with pytest.raises(ModelLoadError, match=r"audio\.num_mel_bins is missing"):
        read_headers(config, lambda line: None)
