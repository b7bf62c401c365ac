"""Tiny random Whisper models against plain transformers, in float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from stonechat_models.backends.transformers.speech.whisper import Thresholds
from stonechat_models.config import EngineConfig
from stonechat_models.engine.speech_engine import SpeechEngine
from stonechat_models.errors import ModelLoadError
from stonechat_models.media.hf_processor import as_tensors
from stonechat_models.runtime.build import build_engine
from stonechat_models.transcript import SpeechParams, Transcript
from stonechat_models.types import GenerateRequest, MediaInput, SamplingParams, TokenOutput
from tests.models.media.audio_prompts import sound
from tests.models.tiny_whisper import (
    RATE,
    features_of,
    plain_segments,
    save_whisper,
    whisper_tokenizer,
)

ANY = Thresholds(compression_ratio=1e9, avg_logprob=-1e9, no_speech_prob=2.0)
"""All text is good."""
FIRST_SPECIAL = whisper_tokenizer().convert_tokens_to_ids("<|endoftext|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return WhisperForConditionalGeneration.from_pretrained(folder).eval()


def engine_of(folder: Path, thresholds: Thresholds = ANY, **settings: Any) -> SpeechEngine:
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", threads=1, **settings)
    engine, _ = build_engine(config, lambda _: None)
    assert isinstance(engine, SpeechEngine)
    engine.model.thresholds = thresholds
    return engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> SpeechEngine:
    return engine_of(folder)


def asked(
    folder: Path, samples: np.ndarray, name: str = "a", prompt: str = "", **options: Any
) -> GenerateRequest:
    params = {key: options.pop(key) for key in [*options] if key in SamplingParams.__slots__}
    tokenizer = whisper_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["<|startofprev|>", "<|startoftranscript|>"])
    prompt_ids = [ids[0], *tokenizer.encode(prompt, add_special_tokens=False)] if prompt else []
    tensors = as_tensors({"input_features": features_of(folder, samples)[0].numpy()})
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=[*prompt_ids, ids[1]],
        params=SamplingParams(**{"temperature": 0.0} | params),
        media=(MediaInput(b"", (), tensors, "audio"),),
        speech=SpeechParams(**options),
    )


def run(engine: SpeechEngine, *requests: GenerateRequest) -> dict[str, Transcript]:
    for request in requests:
        engine.add(request)
    outputs: list[TokenOutput] = []
    while engine.has_work:
        outputs += engine.step()
    found = {output.request_id: output.transcript for output in outputs if output.finish_reason}
    return {name: transcript for name, transcript in found.items() if transcript is not None}


def without_pair(token_ids: list[int], first_time: int) -> tuple[int, ...]:
    """Transformers leaves both times of the last pair with the segment before them."""
    is_pair = len(token_ids) > 1 and min(token_ids[-2:]) >= first_time
    return tuple(token_ids[:-1] if is_pair else token_ids)


def check(transcript: Transcript, segments: list[Any], seconds: float, plain: Any) -> None:
    first_time = plain.generation_config.no_timestamps_token_id + 1
    assert segments
    assert [s.token_ids for s in transcript.segments] == [
        without_pair(s["tokens"].tolist(), first_time) for s in segments
    ]
    times = [(s.start, s.end) for s in transcript.segments]
    end = int(seconds * RATE) // 160 / 100
    found = [(min(float(s["start"]), end), min(float(s["end"]), end)) for s in segments]
    assert times == [pytest.approx(pair) for pair in found]


@pytest.mark.parametrize("seconds", [1.37, 2.0, 7.3])
@pytest.mark.parametrize(
    ("prompt", "language", "task"), [("", "en", "transcribe"), ("A b.", "de", "translate")]
)
def test_segments_are_those_of_transformers(
    engine: SpeechEngine,
    plain: Any,
    folder: Path,
    seconds: float,
    prompt: str,
    language: str,
    task: str,
) -> None:
    samples, options = sound(seconds, 0), {"language": language, "task": task}
    transcript = run(engine, asked(folder, samples, prompt=prompt, **options))["a"]
    if prompt:
        token_ids = asked(folder, samples, prompt=prompt).prompt_token_ids
        options["prompt_ids"] = torch.tensor(token_ids[:-1])
    check(transcript, plain_segments(plain, folder, samples, **options), seconds, plain)
    assert transcript.language == language


def test_languages_are_detected_as_transformers_does(
    engine: SpeechEngine, plain: Any, folder: Path
) -> None:
    for seed in range(4):
        samples = sound(2.0, seed)
        token = plain.detect_language(features_of(folder, samples))
        text = whisper_tokenizer().decode(token)
        assert f"<|{run(engine, asked(folder, samples))['a'].language}|>" == text


def test_numbers_of_a_segment(engine: SpeechEngine, plain: Any, folder: Path) -> None:
    samples = sound(1.9, 1)
    segment = run(engine, asked(folder, samples, language="en"))["a"].segments[0]
    features = torch.nn.functional.pad(features_of(folder, samples), (0, 10))
    outputs = plain.generate(
        features,
        language="en",
        task="transcribe",
        return_timestamps=True,
        force_unique_generate_call=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    chosen = outputs.sequences[0, 3:].tolist()
    scores = [step[0].log_softmax(-1)[i] for step, i in zip(outputs.scores, chosen)]
    assert segment.avg_logprob == pytest.approx(float(np.mean(scores)), abs=1e-5)
    start = torch.tensor([[plain.config.decoder_start_token_id]])
    with torch.no_grad():
        logits = plain(features, decoder_input_ids=start).logits[0, -1]
    silent = whisper_tokenizer().convert_tokens_to_ids("<|nospeech|>")
    assert segment.no_speech_prob == pytest.approx(float(logits.softmax(-1)[silent]), abs=1e-6)
    assert (segment.seek, segment.temperature) == (0, 0.0)


def test_words_are_aligned_as_in_transformers(
    engine: SpeechEngine, plain: Any, folder: Path
) -> None:
    samples = sound(7.3, 0)
    transcript = run(engine, asked(folder, samples, language="zh", with_words=True))["a"]
    mask = torch.ones(1, 730, dtype=torch.long)
    segments = plain_segments(
        plain, folder, samples, language="zh", return_token_timestamps=True, attention_mask=mask
    )
    found = [word.end for segment in transcript.segments for word in segment.words]
    ends = [
        float(time)
        for segment in segments
        for token, time in zip(segment["tokens"], segment["token_timestamps"], strict=True)
        if token < FIRST_SPECIAL
    ]
    assert len(found) > 10
    assert found == [round(time, 2) for time in found]  # frames are hundredths
    assert set(np.round(found, 6)) <= set(np.round(ends, 6))
    for segment in transcript.segments:
        text = "".join(word.text for word in segment.words)
        assert text == segment.text.replace(" ", "")
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)


@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_clips_take_turns_and_share_steps(
    folder: Path, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch, max_num_seqs: int
) -> None:
    """A short clip does not wait for a long one. The answers are those of each alone."""
    clips = {"long": sound(5.0, 2), "short": sound(1.0, 3), "other": sound(3.0, 4)}
    alone = {name: run(engine, asked(folder, clip, name))[name] for name, clip in clips.items()}
    info = replace(engine.model.info, max_num_seqs=max_num_seqs)
    monkeypatch.setattr(engine.model, "info", info)
    for name, clip in clips.items():
        engine.add(asked(folder, clip, name))
    outputs, num_steps = [], 0
    while engine.has_work:
        outputs += engine.step()
        num_steps += 1
    ended = {out.request_id: out.transcript for out in outputs if out.transcript is not None}
    first, *_, last = ended
    assert (first, last) == ("short", "long")
    assert num_steps < len(outputs) if max_num_seqs > 1 else num_steps == len(outputs)
    for name, transcript in ended.items():
        found = [segment.token_ids for segment in transcript.segments]
        assert found == [segment.token_ids for segment in alone[name].segments]


def test_an_aborted_clip_is_heard_no_further(folder: Path, engine: SpeechEngine) -> None:
    engine.add(asked(folder, sound(9.0, 2)))
    engine.step()
    engine.abort("a")
    assert not engine.has_work
    assert not engine.step()


def test_bad_text_is_written_again(
    folder: Path, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At higher temperatures, drawn from the seed; silence is left out."""
    request = asked(folder, sound(1.0, 0), language="en", seed=5, max_tokens=6)
    strict = Thresholds(avg_logprob=0.0, no_speech_prob=2.0)
    monkeypatch.setattr(engine.model, "thresholds", strict)
    segments = run(engine, request)["a"].segments
    assert {segment.temperature for segment in segments} == {1.0}
    assert run(engine, request)["a"].segments == segments
    silent = Thresholds(avg_logprob=0.0, no_speech_prob=-1.0)
    monkeypatch.setattr(engine.model, "thresholds", silent)
    assert run(engine, request)["a"].segments == ()


def test_a_temperature_is_kept(folder: Path, engine: SpeechEngine) -> None:
    request = asked(folder, sound(1.0, 0), temperature=0.7, seed=5, language="en")
    segments = run(engine, request)["a"].segments
    assert {segment.temperature for segment in segments} == {0.7}
    assert run(engine, request)["a"].segments == segments


def test_a_limit_of_tokens(folder: Path, engine: SpeechEngine) -> None:
    engine.add(asked(folder, sound(7.3, 0), language="en", max_tokens=9))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert outputs[-1].finish_reason == "length"
    assert 0 < sum(len(output.token_ids) for output in outputs) <= 9


def test_a_model_of_english_alone(tmp_path: Path) -> None:
    folder = save_whisper(tmp_path / "english", multilingual=False, alignment_heads=None)
    plain = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    engine, samples = engine_of(folder), sound(3.3, 5)
    info = engine.model.info.speech
    assert (info.languages, info.has_words) == ((), False)
    transcript = run(engine, asked(folder, samples))["a"]
    check(transcript, plain_segments(plain, folder, samples), 3.3, plain)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"no_timestamps_token_id": None}, "no no_timestamps_token_id"),
        ({"quantize": "int8"}, "leave out --quantize"),
        ({"backend": "native"}, "it is a model of speech"),
        ({"draft_model": "other"}, "nothing is drafted"),
    ],
)
def test_what_cannot_be_served(
    tmp_path: Path, folder: Path, change: dict[str, Any], reason: str
) -> None:
    settings = {name: value for name, value in change.items() if name in EngineConfig.__slots__}
    if not settings:
        folder = save_whisper(tmp_path / "old", **change)
    with pytest.raises(ModelLoadError, match=reason):
        engine_of(folder, **settings)
