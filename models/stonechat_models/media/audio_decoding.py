"""The bytes of an audio file to samples. What the file holds counts, not what it is called."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stonechat_models.media.records import AudioOptions, UnusableMediaError, too_long

if TYPE_CHECKING:
    from soundfile import SoundFile

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
"""As libsndfile names them. OGG holds Vorbis or Opus."""
MAX_CHANNELS = 16
SAMPLING_RATES = (1000, 384_000)
STEREO_SAMPLES = 96_000
"""Samples a second of a file with two channels, as most have at most."""
MANY_SAMPLES = 1 << 28
"""All channels of a file may have as many, however few seconds are taken. Few bytes can become so
many samples: this takes 3 to 15 s."""
BLOCK_SAMPLES = 1 << 18
"""How many samples of all channels are decoded at a time."""
UNKNOWN_FRAMES = 1 << 62
"""What libsndfile says of a file of unknown length, or more."""
NOT_RECOGNISED = 1
"""The code of libsndfile's error for other files."""
OGG_STREAM = b"OggS\0\x02"
"""How the first page of each stream of an Ogg file begins."""

Samples = npt.NDArray[np.float32]


def decode_audio(
    data: bytes,
    options: AudioOptions,
    sampling_rate: int,
    check_seconds: Callable[[float], None] = lambda _: None,
) -> tuple[Samples, float]:
    """Return the samples float32[n] at a sampling rate, and how many seconds the file has.

    `check_seconds` raises `UnusableMediaError` for a length that the model does not take.

    Channels become one, their mean. Samples are within -1 and 1; those that a file has as floats
    may be beyond.

    Raises `UnusableMediaError`. A file is not decoded if its header says that it is too long, and
    only up to the limit if the header is wrong.
    """
    import soundfile

    if not data:
        raise UnusableMediaError("empty", "is empty")
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except soundfile.LibsndfileError as error:
        if error.code == NOT_RECOGNISED:
            raise UnusableMediaError("format", "is not a WAV, MP3, FLAC or Ogg file") from None
        raise UnusableMediaError("broken", "is broken, or of a codec that is not read") from None
    with file:
        if file.format == "OGG" and data.count(OGG_STREAM) > 1:  # libsndfile reads the first
            raise UnusableMediaError("format", "has several streams, and only one is read")
        _check_header(file, options)
        check_seconds(file.frames / file.samplerate)
        try:
            samples, num_frames = _resampled(file, options, sampling_rate)
        except soundfile.SoundFileError as error:
            raise UnusableMediaError("broken", f"is broken: {error}"[:300]) from None
        seconds = num_frames / file.samplerate
    if not len(samples):
        raise UnusableMediaError("empty", "has no samples")
    if not np.isfinite(samples).all():
        raise UnusableMediaError("broken", "is broken: it has samples that are no finite numbers")
    return samples, seconds


def _check_header(file: "SoundFile", options: AudioOptions) -> None:
    if file.format not in FORMATS:
        raise UnusableMediaError("format", "is not a WAV, MP3, FLAC or Ogg file")
    least, most = SAMPLING_RATES
    if not least <= file.samplerate <= most:
        reason = f"has {file.samplerate} samples a second; {least} to {most} are read"
        raise UnusableMediaError("too_large" if file.samplerate > most else "broken", reason)
    if file.channels > MAX_CHANNELS:
        reason = f"has {file.channels} channels, and the limit is {MAX_CHANNELS}"
        raise UnusableMediaError("too_large", reason)
    if file.frames >= UNKNOWN_FRAMES:  # libsndfile cannot read on in it
        raise UnusableMediaError("broken", "does not say how long it is")
    if file.frames > options.max_seconds * file.samplerate:
        raise too_long(options.max_seconds)
    most_samples = max(MANY_SAMPLES, int(options.max_seconds * STEREO_SAMPLES))
    if file.frames * file.channels > most_samples:
        reason = f"has {file.frames * file.channels} samples, and the limit is {most_samples}"
        raise UnusableMediaError("too_large", reason)


def _resampled(file: "SoundFile", options: AudioOptions, sampling_rate: int) -> tuple[Samples, int]:
    """Return the samples at another rate, and how many frames were read."""
    from soxr import ResampleStream

    stream = ResampleStream(file.samplerate, sampling_rate, 1, dtype="float32")
    parts: list[Samples] = []
    num_frames, is_last = 0, False
    while not is_last:
        block = file.read(BLOCK_SAMPLES // file.channels, dtype="float32", always_2d=True)
        is_last = not len(block)
        num_frames += len(block)
        if num_frames > options.max_seconds * file.samplerate:
            raise too_long(options.max_seconds)
        mono = block.mean(axis=1)
        is_same = file.samplerate == sampling_rate
        parts.append(mono if is_same else stream.resample_chunk(mono, last=is_last))
    return np.concatenate(parts), num_frames
