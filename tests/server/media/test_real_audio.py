"""Tiny real models that hear behind the whole server: plain transformers' prompts and answers."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from fastapi.testclient import TestClient

from stonechat_models import AsyncEngine, EngineConfig
from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.models.media.audio_prompts import RATE, AudioModel, sound
from tests.server.bodies import URL, ask, body
from tests.server.fake_media import audio, audio_url, data_url, user

FAMILIES = [
    "qwen2_audio",
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("glmasr", "voxtral")),
]
GREEDY = {
    "temperature": 0,
    "max_completion_tokens": 8,
    "ignore_eos": True,
    "skip_special_tokens": False,
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioModel:
    return AudioModel(tmp_path_factory.mktemp("audio") / request.param, request.param)


@pytest.fixture(scope="module")
def client(model: AudioModel) -> Iterator[TestClient]:
    config = EngineConfig(
        model=str(model.folder), device="cpu", dtype="float32", max_model_len=4096
    )
    app = create_app(Settings(max_audio_seconds=2.0), AsyncEngine.from_config(config))
    with TestClient(app, "http://127.0.0.1:8000") as client:
        yield client


def wav(samples: np.ndarray, **options: Any) -> bytes:
    """A WAV file of the very same samples, unless the options say otherwise."""
    buffer = io.BytesIO()
    given: dict[str, Any] = {"samplerate": RATE, "format": "WAV", "subtype": "FLOAT"} | options
    soundfile.write(buffer, samples, **given)
    return buffer.getvalue()


def rendered(model: AudioModel, *turns: list[Any]) -> str:
    """What transformers' own rendering of the template gives, with `#` for each clip."""
    plain = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": item} if isinstance(item, str) else {"type": "audio"}
                for item in items
            ],
        }
        for items in turns
    ]
    template = (model.folder / "chat_template.jinja").read_text(encoding="utf-8")
    text = model.tokenizer.apply_chat_template(
        plain, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return str(text).replace(model.family.audio, "#")


def test_the_answer_is_that_of_plain_transformers(client: TestClient, model: AudioModel) -> None:
    clips = [sound(1.0, 0), sound(0.7, 1)]
    parts = [audio(wav(clips[0])), audio_url(data_url(wav(clips[1]), "audio/wav"))]
    messages = [user("Compare ", parts[0], " with "), user(parts[1], "!")]
    prompt = model.prompt(rendered(model, ["Compare ", 0, " with "], [1, "!"]), *clips)
    tokens, logprobs = model.reference(prompt, 8)
    fields = {"model": None, "messages": messages, "return_token_ids": True, **GREEDY}
    answer = ask(client, logprobs=True, **fields)
    assert answer["prompt_token_ids"] == prompt.token_ids
    choice = answer["choices"][0]
    assert choice["token_ids"] == tokens
    found = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert found == pytest.approx(logprobs, abs=2e-3)
    num_audio = sum(one.num_tokens for one in prompt.media)
    assert answer["usage"]["prompt_tokens_details"]["audio_tokens"] == num_audio
    again = ask(client, **fields)
    assert again["choices"][0]["token_ids"] == tokens
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > num_audio // 2
    lines = client.get("/metrics").text.splitlines()
    encoded = [line for line in lines if line.startswith("stonechat:audio_encoded_total")]
    assert [line.split()[-1] for line in encoded] == ["2.0"]


def test_other_files_of_the_same_sound(client: TestClient, model: AudioModel) -> None:
    """As many tokens, whatever the format, the rate and the number of channels."""
    samples = sound(1.0, 0)
    stereo = np.stack([samples, samples], axis=1)
    files = [
        wav(samples),
        wav(samples, format="FLAC", subtype="PCM_16"),
        wav(samples, format="OGG", subtype="VORBIS"),
        wav(stereo),
        wav(np.repeat(samples, 3), samplerate=3 * RATE),
    ]
    counts = {
        ask(client, model=None, messages=[user(audio(file))], max_completion_tokens=1)["usage"][
            "prompt_tokens"
        ]
        for file in files
    }
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("file", "code"),
    [
        (wav(sound(0.5))[:30], "audio_parse_error"),
        (b"ID3\x04\x00" + bytes(200), "unsupported_audio_format"),
        (b"fLaC" + bytes(100), "audio_parse_error"),
        (wav(np.zeros(0, np.float32)), "empty_audio_file"),
        (wav(sound(3.0)), "audio_too_long"),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else value,  # a WAV file holds the time
)
def test_files_that_cannot_be_heard(client: TestClient, file: bytes, code: str) -> None:
    fields = body(model=None, messages=[user("a", audio(file))])
    response = client.post(URL, json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages[0].content[1]"), error
    assert error["code"] == code, error


def test_a_transcript(client: TestClient) -> None:
    files = {"file": ("speech.wav", wav(sound(1.0, 0)))}
    data = {"max_completion_tokens": "5"}
    answer = client.post("/v1/audio/transcriptions", files=files, data=data).json()
    usage = answer["usage"]
    assert usage["output_tokens"] <= 5
    assert usage["input_token_details"]["audio_tokens"] > 5
    assert isinstance(answer["text"], str)
