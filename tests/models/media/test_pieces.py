"""A long clip in pieces becomes what it becomes as a whole."""

from pathlib import Path

import pytest
import torch

from stonechat_models.media import pieces
from stonechat_models.media.encode import encode_media
from stonechat_models.media.hf_processor import as_tensors
from stonechat_models.media.records import MediaPiece, PreparedMedia
from stonechat_models.types import MediaInput
from tests.models.audio_families import FAMILIES
from tests.models.media.audio_prompts import AudioModel, sound

NUM_PIECES = {
    "qwen2_5_omni_thinker": 3,
    "qwen3_omni_moe_thinker": 2,
    "qwen3_asr": 3,
    "voxtral": 9,
    "glmasr": 6,
    "audioflamingo3": 6,
    "musicflamingo": 1,
    "qwen2_audio": 1,
    "gemma4": 1,
}
SECONDS = {
    "qwen3_omni_moe_thinker": 16.2,  # behind the last window, less than a chunk of 1 s is left
    "glmasr": 11.3,
    "audioflamingo3": 11.3,
    "musicflamingo": 11.3,
    "qwen2_audio": 1.9,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_embeddings_of_pieces_are_those_of_the_whole(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The windows of these models have 2 or 8 seconds."""
    monkeypatch.setattr(pieces, "PIECE_FRAMES", 800)
    model = AudioModel(tmp_path / "model", name)
    _, num_tokens, arrays = model.processor.prepare(sound(SECONDS.get(name, 17.3)))
    parts = model.processor.cut(num_tokens, arrays)
    assert len(parts) == NUM_PIECES[name]

    def encoded(length: int, tensors: dict) -> torch.Tensor:
        medium = MediaInput(b"", ((0, length),), as_tensors(tensors), "audio")
        with torch.inference_mode():
            return encode_media(model.module, medium, torch.device("cpu"), torch.float32).embeddings

    together = torch.cat([encoded(*part) for part in parts])
    torch.testing.assert_close(together, encoded(num_tokens, arrays), atol=1e-5, rtol=1e-4)


def test_pieces_are_told_apart() -> None:
    clip = PreparedMedia(
        modality="audio",
        content_hash=bytes(16),
        placeholder="",
        text="",
        num_tokens=5,
        pieces=(MediaPiece(3, {}), MediaPiece(2, {})),
    )
    first, second = clip.placed(((4, 3),)), clip.placed(((7, 2),), 1)
    assert first.content_hash == clip.content_hash != second.content_hash
    assert (first.num_tokens, second.num_tokens, len(second.content_hash)) == (3, 2, 16)
