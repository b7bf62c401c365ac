"""Clips that processes of their own prepare, and those that a model cannot take."""

from pathlib import Path

import numpy as np
import pytest

from stonechat_models.errors import InvalidMediaError
from stonechat_models.media import hf_processor
from stonechat_models.media.hf_processor import HFProcessor, checked_processor
from stonechat_models.media.positions import as_array
from stonechat_models.media.processor import MediaProcessor
from stonechat_models.media.records import AudioOptions, UnusableMediaError
from tests.models.audio_families import FAMILIES
from tests.models.audio_models import audio_tokenizer, save_audio_processor
from tests.models.media.audio_prompts import RATE, sound
from tests.models.media.test_audio_decoding import file

HANG_SECONDS = 120
NAME = "qwen2_audio"
TOKEN_ID: int = audio_tokenizer(FAMILIES[NAME]).convert_tokens_to_ids(FAMILIES[NAME].token)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_audio_processor(tmp_path_factory.mktemp("audio") / "model", NAME)


def processor_of(folder: Path, name: str) -> HFProcessor:
    token_id: int = audio_tokenizer(FAMILIES[name]).convert_tokens_to_ids(FAMILIES[name].token)
    return HFProcessor(save_audio_processor(folder / name, name), "audio", token_id)


def test_clips_are_prepared_in_a_process(folder: Path) -> None:
    processor = MediaProcessor(folder, {"audio": TOKEN_ID})
    options = AudioOptions(max_seconds=1.5)
    files = [file(sound(seconds), RATE) for seconds in (0.5, 1.25)]
    first, second = processor.prepare(files, options).result(HANG_SECONDS)
    assert (first.modality, first.seconds, second.seconds) == ("audio", 0.5, 1.25)
    assert first.placeholder == "<|AUDIO|>"
    assert first.text == "<|AUDIO|>" * first.num_tokens
    assert first.content_hash != second.content_hash
    here = HFProcessor(folder, "audio", TOKEN_ID)
    _, num_tokens, arrays = here.prepare(sound(1.25))
    assert second.num_tokens == num_tokens
    assert {name: as_array(t).tolist() for name, t in second.pieces[0].tensors.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    placed = second.placed(((3, num_tokens),))
    assert (placed.modality, placed.num_tokens) == ("audio", num_tokens)
    assert processor.prepare(files[:1], options).result(HANG_SECONDS)[0] is first
    with pytest.raises(InvalidMediaError) as caught:
        processor.prepare([files[0], file(sound(1.6), RATE)], options).result(HANG_SECONDS)
    assert (caught.value.index, caught.value.kind) == (1, "too_long")
    processor.close()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clip_of_which_a_processor_drops_the_end_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some take windows of 2 seconds here, others up to 12, 20 or 30, or any length."""
    monkeypatch.setattr(hf_processor, "LONG_SECONDS", 1.0)
    processor = processor_of(tmp_path, name)
    takes = {}
    for seconds in (1.9, 11.9, 25.0, 31.0):
        try:
            processor.prepare(sound(seconds))
            takes[seconds] = True
        except UnusableMediaError as error:
            takes[seconds] = error.reason != "is longer than this model takes"
    assert takes == {1.9: True, 31.0: TAKES[name][25.0], **TAKES[name]}


LIMITS = {
    "gemma4": 30,
    "qwen2_5_omni_thinker": 20,
    "qwen2_audio": 2,
    "audioflamingo3": 12,
    "musicflamingo": 12,
    "glmasr": 12,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_limit_of_a_model_is_known_before_a_clip_is_decoded(tmp_path: Path, name: str) -> None:
    processor = processor_of(tmp_path, name)
    limit = LIMITS.get(name)
    processor.check_seconds(limit or 3600.0)
    if limit is not None:
        with pytest.raises(UnusableMediaError, match=f"the limit of {limit} seconds") as caught:
            processor.check_seconds(limit + 0.1)
        assert caught.value.kind == "too_long"


ANY = {11.9: True, 25.0: True}
TAKES = {
    "gemma4": {11.9: True, 25.0: True, 31.0: False},
    "qwen2_5_omni_thinker": {11.9: True, 25.0: False},
    "qwen3_omni_moe_thinker": ANY,
    "qwen2_audio": {11.9: False, 25.0: False},
    "audioflamingo3": {11.9: True, 25.0: False},
    "musicflamingo": {11.9: True, 25.0: False},
    "glmasr": {11.9: True, 25.0: False},
    "qwen3_asr": ANY,
    "voxtral": ANY,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clip_that_ends_in_silence_is_taken_as_one_that_does_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxtral fills clips up with silence, and has no mask: it hears both alike."""
    monkeypatch.setattr(hf_processor, "LONG_SECONDS", 0.5)
    processor = processor_of(tmp_path, name)
    samples = sound(1.5)
    samples[-RATE // 2 :] = 0.0
    assert processor.prepare(samples)[1] > 0
    assert processor.prepare(np.zeros(RATE * 7 // 4, np.float32))[1] > 0


@pytest.mark.parametrize("name", ["gemma4", "glmasr", "musicflamingo", "qwen2_audio"])
def test_a_clip_that_is_too_short_is_refused(tmp_path: Path, name: str) -> None:
    """It becomes no tokens. Others fill it up."""
    processor = processor_of(tmp_path, name)
    with pytest.raises(UnusableMediaError) as caught:
        processor.prepare(sound(1.0)[:10])
    assert (caught.value.kind, caught.value.reason) == ("unfit", "is too short for this model")


def test_a_clip_that_is_too_loud_is_refused(folder: Path) -> None:
    processor = HFProcessor(folder, "audio", TOKEN_ID)
    with pytest.raises(UnusableMediaError, match="no finite numbers"):
        processor.prepare(sound(1.0) * np.float32(1e30))


def test_why_a_model_takes_no_audio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(checked_processor(folder, "audio", TOKEN_ID), HFProcessor)
    reason = checked_processor(folder, "audio", TOKEN_ID + 1)
    assert reason == "the placeholders of its processor are not its model's"
    reason = checked_processor(folder / "nothing", "audio", TOKEN_ID)
    assert reason == "its folder names no processor that transformers has"
    monkeypatch.setattr(hf_processor, "find_spec", lambda name: None)
    reason = "audio needs soundfile and soxr: pip install 'stonechat[audio]'"
    assert checked_processor(folder, "audio", TOKEN_ID) == reason
