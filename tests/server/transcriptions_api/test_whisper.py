"""A tiny Whisper behind the whole server: transformers' segments in OpenAI's shapes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, OpenAI
from transformers import WhisperForConditionalGeneration

from stonechat_models import SpeechInfo
from stonechat_models.backends.transformers.speech.whisper import Thresholds
from stonechat_server.access.keys import ApiKey
from stonechat_server.admission.controller import Admission, AdmissionControl
from stonechat_server.admission.limits import Cost
from tests.models.media.audio_prompts import sound
from tests.models.tiny_whisper import features_of, plain_segments, save_whisper, text_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, model_info
from tests.server.fake_media import AUDIO, FakeMediaProcessor
from tests.server.fake_media import wav as fake_wav
from tests.server.media.test_real_audio import wav
from tests.server.real_models import servers

SAMPLES = sound(7.3, 0)
FILE = ("speech.wav", wav(SAMPLES))
KNOWN = SpeechInfo(
    languages=("de", "en"), max_prompt_tokens=20, prompt_id=1, start_id=2, has_words=True
)
ANY = Thresholds(compression_ratio=1e9, avg_logprob=-1e9, no_speech_prob=2.0)
"""All text is good."""
ENGLISH = SpeechInfo(languages=(), max_prompt_tokens=20, prompt_id=1, start_id=2, has_words=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_whisper(tmp_path_factory.mktemp("whisper") / "tiny-whisper")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with servers(folder, []) as start:
        client = start()
        engine: Any = client.app.state.server.sole.engine  # type: ignore[attr-defined]
        engine._runner.engine.model.thresholds = ANY
        yield client


@pytest.fixture(scope="module")
def audio(client: TestClient) -> Any:
    base = "http://127.0.0.1:8000/v1"
    return OpenAI(base_url=base, api_key="none", max_retries=0, http_client=client).audio


@pytest.fixture(scope="module")
def segments(folder: Path) -> list[Any]:
    plain = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    return plain_segments(plain, folder, SAMPLES, language="de", task="transcribe")


def test_openais_client_reads_all_formats(audio: Any, segments: list[Any]) -> None:
    options = {"model": "tiny-whisper", "file": FILE, "language": "german"}
    texts = [text_of(segment) for segment in segments]
    plain = audio.transcriptions.create(**options)
    assert re.sub(r"\s", "", plain.text) == re.sub(r"\s", "", "".join(texts))
    assert (plain.usage.type, plain.usage.seconds) == ("duration", pytest.approx(7.3))
    assert audio.transcriptions.create(**options, response_format="text") == plain.text + "\n"
    verbose = audio.transcriptions.create(
        **options,
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert (verbose.text, verbose.language) == (plain.text, "german")
    assert verbose.duration == pytest.approx(7.3)
    assert [segment.text.strip() for segment in verbose.segments] == texts
    assert [segment.id for segment in verbose.segments] == list(range(len(texts)))
    starts = [float(segment["start"]) for segment in segments]
    assert [segment.start for segment in verbose.segments] == pytest.approx(starts)
    assert {segment.temperature for segment in verbose.segments} == {0.0}
    words = "".join(word.word for word in verbose.words)
    assert words == re.sub(r" ", "", "".join(segment.text for segment in verbose.segments))
    assert all(0 <= word.start <= word.end <= 7.4 for word in verbose.words)
    only_words = audio.transcriptions.create(
        **options, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert (only_words.segments, only_words.words) == (None, verbose.words)


def test_subtitles(audio: Any) -> None:
    options = {"model": "tiny-whisper", "file": FILE, "language": "de"}
    segments = audio.transcriptions.create(**options, response_format="verbose_json").segments
    srt = audio.transcriptions.create(**options, response_format="srt")
    vtt = audio.transcriptions.create(**options, response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n")
    assert srt.count(" --> ") == vtt.count(" --> ") == len(segments)
    for text, point in ((srt, ","), (vtt, ".")):
        times = re.findall(rf"(\d\d):(\d\d):(\d\d)\{point}(\d\d\d)", text)
        seconds = [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in times]
        wanted = [time for segment in segments for time in (segment.start, segment.end)]
        assert seconds == pytest.approx(wanted, abs=0.001)


def test_a_stream_has_the_text_of_each_window(audio: Any) -> None:
    options = {"model": "tiny-whisper", "file": FILE, "language": "de"}
    events = list(audio.transcriptions.create(**options, stream=True))
    assert len(events) > 2
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]) == events[-1].text
    assert events[-1].text == audio.transcriptions.create(**options).text


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's own
def test_a_translation_is_english(audio: Any) -> None:
    verbose = audio.translations.create(
        model="tiny-whisper", file=FILE, response_format="verbose_json"
    )
    assert (verbose.language, bool(verbose.segments)) == ("english", True)
    plain = audio.translations.create(model="tiny-whisper", file=FILE)
    assert plain.text == verbose.text
    with pytest.raises(BadRequestError, match="shorter than"):
        audio.translations.create(model="tiny-whisper", file=("a.wav", wav(sound(0.05))))


def test_the_language_is_named(audio: Any, folder: Path) -> None:
    verbose = audio.transcriptions.create(
        model="tiny-whisper", file=FILE, response_format="verbose_json"
    )
    plain = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    token = int(plain.detect_language(features_of(folder, SAMPLES)[:, :, :200]))
    codes = {token_id: code for code, token_id in plain.generation_config.lang_to_id.items()}
    names = {"<|en|>": "english", "<|de|>": "german", "<|zh|>": "chinese"}
    assert verbose.language == names[codes[token]]


def test_other_endpoints_refuse_the_model(client: TestClient) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    response = client.post("/v1/chat/completions", json={"messages": messages})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "model_not_generative")
    assert error["message"] == (
        "This model transcribes speech; it does not generate. Use POST /v1/audio/transcriptions."
    )
    response = client.post("/v1/embeddings", json={"input": "Hi"})
    assert response.json()["error"]["code"] == "model_not_embedding"
    (card,) = client.get("/v1/models").json()["data"]
    assert card["input_modalities"] == ["audio"]
    assert card["stonechat"]["speech"]["languages"] == ["de", "en", "zh"]


WORDS = {"timestamp_granularities[]": "word"}
TWICE = {**WORDS, "timestamp_granularities": "segment"}


@pytest.mark.parametrize(
    ("info", "path", "fields", "param", "message"),
    [
        (KNOWN, "transcriptions", {"language": "xx"}, "language", "does not know 'xx', but de, en"),
        (KNOWN, "transcriptions", WORDS, "timestamp_granularities", "verbose_json"),
        (KNOWN, "transcriptions", TWICE, "timestamp_granularities", "twice"),
        (KNOWN, "transcriptions", {"prompt": "x" * 20}, "prompt", "23 tokens.* at most 20"),
        (KNOWN, "translations", {"language": "de"}, "language", "into English"),
        (ENGLISH, "transcriptions", {"language": "de"}, "language", "English only, not German"),
        (ENGLISH, "translations", {}, "model", "does not translate"),
        (
            ENGLISH,
            "transcriptions",
            {**WORDS, "response_format": "verbose_json"},
            "timestamp_granularities",
            "alignment_heads",
        ),
    ],
)
def test_what_the_model_does_not_do(
    new_client: ClientFactory,
    engine: FakeEngine,
    info: SpeechInfo,
    path: str,
    fields: dict[str, str],
    param: str,
    message: str,
) -> None:
    engine.model = model_info(generates=False, num_blocks=0, audio=AUDIO, speech=info)
    engine.media_processor = FakeMediaProcessor()
    files = {"file": ("speech.wav", fake_wav())}
    response = new_client().post(f"/v1/audio/{path}", data=fields, files=files)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert re.search(message, error["message"])
    assert engine.requests == []


def test_a_limit_beyond_the_context_counts_as_one_window(
    new_client: ClientFactory, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one request would fill the queue."""
    costs: list[Cost] = []
    admit = AdmissionControl.admit

    async def noted(self: AdmissionControl, key: ApiKey, cost: Cost, **options: Any) -> Admission:
        costs.append(cost)
        return await admit(self, key, cost, **options)

    monkeypatch.setattr(AdmissionControl, "admit", noted)
    engine.model = model_info(generates=False, num_blocks=0, audio=AUDIO, speech=KNOWN)
    engine.media_processor = FakeMediaProcessor()
    data = {"max_tokens": 2**31 - 1}
    files = {"file": ("speech.wav", fake_wav())}
    assert new_client().post("/v1/audio/transcriptions", data=data, files=files).is_success
    assert engine.requests[0].params.max_tokens == 2**31 - 1
    assert [cost.tokens for cost in costs] == [engine.model.max_model_len]
