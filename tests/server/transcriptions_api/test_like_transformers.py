"""The questions to families of models for speech are those of transformers' own processors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from transformers import AutoProcessor

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from stonechat_server.transcriptions_api.families import FAMILIES
from tests.models.audio_families import FAMILIES as FOLDERS
from tests.models.audio_models import save_audio_processor
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.fake_media import AUDIO, FakeMediaProcessor, wav

ARCHITECTURES = {
    "audioflamingo3": "AudioFlamingo3ForConditionalGeneration",
    "glmasr": "GlmAsrForConditionalGeneration",
    "qwen3_asr": "Qwen3ASRForConditionalGeneration",
}
CLIP = np.zeros(16_000, np.float32)


def test_all_families_with_such_a_processor_are_compared() -> None:
    """Voxtral's needs mistral-common."""
    assert {*ARCHITECTURES.values(), "VoxtralForConditionalGeneration"} == set(FAMILIES)


@pytest.mark.parametrize("fields", [{}, {"language": "de"}, {"language": "en", "prompt": "Ann"}])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_question(name: str, fields: dict[str, str], tmp_path: Path) -> None:
    folder = save_audio_processor(tmp_path / name, name)
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    processor: Any = AutoProcessor.from_pretrained(folder)
    known = fields if name == "qwen3_asr" else {}
    (wanted,) = processor.apply_transcription_request(
        CLIP, tokenize=False, chat_template=template, **known
    )
    placeholder = FOLDERS[name].token
    engine = FakeEngine(
        model=model_info(audio=AUDIO, architecture=ARCHITECTURES[name]),
        tokenizer=ByteTokenizer(chat_template=template),
        media_processor=FakeMediaProcessor(audio_placeholder=placeholder),
    )
    with TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000") as client:
        files = {"file": ("speech.wav", wav())}
        response = client.post("/v1/audio/transcriptions", data=fields, files=files)
    assert response.status_code == 200, response.text
    assert engine.prompt == wanted.replace(placeholder, "(\x02\x02\x02)")
