"""Audio files to samples: what libsndfile and soxr make of them, and the bounds on it."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from stonechat_models.media import audio_decoding
from stonechat_models.media.audio_decoding import decode_audio
from stonechat_models.media.records import AudioOptions, UnusableMediaError

RATE = 16000
OPTIONS = AudioOptions(max_seconds=5.0)


def noise(num_frames: int, num_channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_frames, num_channels)).astype("f4")


def file(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format=kind, subtype=subtype)
    return target.getvalue()


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000, 192_000])
def test_samples_at_another_rate_equal_those_of_soxr(
    rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_decoding, "BLOCK_SAMPLES", 1001)
    samples = noise(2 * rate + 13, num_channels=2)
    decoded, seconds = decode_audio(file(samples, rate), OPTIONS, RATE)
    assert seconds == len(samples) / rate
    expected = soxr.resample(samples.mean(axis=1), rate, RATE)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("RF64", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.25),
        ("MP3", "MPEG_LAYER_III", 0.2),
    ],
)
def test_all_formats(kind: str, subtype: str, tolerance: float) -> None:
    samples = 0.5 * np.sin(np.arange(RATE) / 20)
    decoded, seconds = decode_audio(file(samples, RATE, kind, subtype), OPTIONS, RATE)
    assert seconds == pytest.approx(1.0, abs=0.1)
    assert np.abs(decoded[2000:14000] - samples[2000:14000]).max() < tolerance


def flac_of_unknown_length(samples: np.ndarray) -> bytes:
    """Return a FLAC file whose header does not say how many samples it has."""
    data = bytearray(file(samples, RATE, "FLAC", "PCM_16"))
    data[21] &= 0xF0  # the last 36 bits of the header's numbers are the count
    data[22:26] = bytes(4)
    return bytes(data)


def wav(samples: Any, rate: int = RATE) -> bytes:
    return file(np.asarray(samples, dtype="f4"), rate)


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"", "empty", "is empty"),
        (wav([]), "empty", "has no samples"),
        (b"text" * 30, "format", "is not a WAV, MP3, FLAC or Ogg file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "format", "is not a WAV, MP3, FLAC or Ogg file"),
        (file(noise(9), RATE, "AIFF", "PCM_16"), "format", "is not a WAV, MP3, FLAC or Ogg"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "broken", "is broken, or of a codec that is not read"),
        (file(noise(9000), RATE, "FLAC", "PCM_16")[:5000], "broken", "is broken"),
        (wav([0.0, np.nan, 0.0] * 400), "broken", "that are no finite numbers"),
        (wav([0.0, np.inf, 0.0] * 400), "broken", "that are no finite numbers"),
        (wav(noise(9), rate=10), "broken", "has 10 samples a second"),
        (wav(noise(9), rate=1_000_000), "too_large", "has 1000000 samples a second"),
        (wav(noise(9, 100)), "too_large", "has 100 channels, and the limit is 16"),
        (wav(noise(5 * RATE + 1)), "too_long", "is longer than the limit of 5 seconds"),
        (flac_of_unknown_length(noise(RATE)), "broken", "does not say how long it is"),
        (2 * file(noise(RATE), RATE, "OGG", "VORBIS"), "format", "has several streams"),
    ],
    ids=lambda value: "data" if isinstance(value, bytes) else value,  # a WAV file holds the time
)
def test_files_that_cannot_be_used(data: bytes, kind: str, reason: str) -> None:
    with pytest.raises(UnusableMediaError) as caught:
        decode_audio(data, OPTIONS, RATE)
    assert caught.value.kind == kind
    assert reason in caught.value.reason


def test_a_file_that_decodes_to_hours_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = file(np.zeros(3600 * RATE, dtype="i2"), RATE, "FLAC", "PCM_16")
    assert len(data) < 1_000_000
    monkeypatch.setattr(audio_decoding, "_resampled", None)
    with pytest.raises(UnusableMediaError, match="longer than the limit"):
        decode_audio(data, OPTIONS, RATE)


@pytest.mark.parametrize(("max_seconds", "most"), [(1000.0, 1 << 28), (7200.0, 691_200_000)])
def test_a_file_of_few_bytes_and_too_many_samples_is_not_decoded(
    max_seconds: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio_decoding, "_resampled", None)
    data = bytearray(file(noise(10, 8), 384_000, "FLAC", "PCM_16"))
    data[22:26] = (most // 8 + 1).to_bytes(4)  # how many frames follow
    with pytest.raises(UnusableMediaError, match=f"and the limit is {most}") as caught:
        decode_audio(bytes(data), AudioOptions(max_seconds=max_seconds), RATE)
    assert caught.value.kind == "too_large"


def test_the_models_limit_is_checked_before_a_file_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audio_decoding, "_resampled", None)

    def refuse(seconds: float) -> None:
        raise UnusableMediaError("too_long", f"{seconds:g}")

    with pytest.raises(UnusableMediaError, match=r"^1\.5$"):
        decode_audio(wav(noise(RATE * 3 // 2)), OPTIONS, RATE, refuse)


def test_a_header_that_is_wrong_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is the check of the header that is wrong."""
    monkeypatch.setattr(audio_decoding, "_check_header", lambda *_: None)
    monkeypatch.setattr(audio_decoding, "BLOCK_SAMPLES", RATE)
    reads = []
    read = soundfile.SoundFile.read

    def counted(*arguments: Any, **settings: Any) -> Any:
        reads.append(arguments[1])
        return read(*arguments, **settings)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    with pytest.raises(UnusableMediaError, match="longer than the limit of 5 seconds"):
        decode_audio(wav(noise(60 * RATE)), OPTIONS, RATE)
    assert reads == [RATE] * 6
