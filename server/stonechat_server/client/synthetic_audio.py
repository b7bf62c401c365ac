"""Sounds made of a seed, for checks: WAV files, and parts of messages with them."""

import base64
import io
import math
import random
import wave
from typing import Any

RATE = 16_000
"""Samples a second."""


def wav(seconds: float, seed: str) -> bytes:
    """A WAV file of tones, other ones for another seed."""
    numbers = random.Random(seed)
    tones = [numbers.uniform(100, 2_000) for _ in range(4)]
    samples = bytearray()
    for i in range(int(seconds * RATE)):
        tone = tones[4 * i // max(1, int(seconds * RATE))]
        value = int(8_000 * math.sin(2 * math.pi * tone * i / RATE))
        samples += value.to_bytes(2, "little", signed=True)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples)
    return buffer.getvalue()


def audio_part(file: bytes, format: str = "wav") -> dict[str, Any]:
    """A file as a part of a message."""
    data = base64.b64encode(file).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": format}}
