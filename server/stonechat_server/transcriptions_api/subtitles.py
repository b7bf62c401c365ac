"""Writes the segments of a transcript as subtitles."""

from collections.abc import Sequence
from typing import Literal

from stonechat_models import SpeechSegment


def subtitles(segments: Sequence[SpeechSegment], form: Literal["srt", "vtt"]) -> str:
    """Return a file of SubRip, or of WebVTT."""
    point = "," if form == "srt" else "."
    blocks = ["WEBVTT\n\n"] if form == "vtt" else []
    for number, segment in enumerate(segments, 1):
        head = f"{number}\n" if form == "srt" else ""
        times = f"{_clock(segment.start, point)} --> {_clock(segment.end, point)}"
        text = segment.text.strip().replace("-->", "->")
        blocks.append(f"{head}{times}\n{text}\n\n")
    return "".join(blocks)


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds, milliseconds = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{milliseconds:03}"
