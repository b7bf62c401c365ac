"""The scorecard's checks of audio, against servers that hear, half hear, or are deaf."""

import base64
import io
import json
import wave
from typing import Any

import pytest

from stonechat_server.scorecard import audio
from stonechat_server.scorecard.outcome import CHECKS, HONOURED, Verdict
from stonechat_server.scorecard.server import EARS, Answer, takes

from .test_scorecard import FULL, Body, error, find

RUNS = [check.run for check in CHECKS if check.part == "audio"]


def hears(body: Body) -> Answer:
    """Reads WAV files with Python's own reader: a token for each tenth of a second."""
    num_tokens, heard = 0, b""
    for part in body["messages"][-1]["content"]:
        if part["type"] != "input_audio":
            continue
        given = part["input_audio"]
        if given["format"] != "wav":
            return error(400, **FULL)
        try:
            with wave.open(io.BytesIO(base64.b64decode(given["data"]))) as file:
                num_tokens += 10 * file.getnframes() // file.getframerate()
                heard += file.readframes(file.getnframes())
        except (wave.Error, EOFError):
            return error(400, **FULL)
    logprob = -(sum(heard[:2000]) % 97) / 10 - 0.1
    top = {"token": "A", "logprob": logprob}
    choice = {"index": 0, "message": {"content": "A"}, "logprobs": {"content": [top]}}
    usage = {"prompt_tokens": 10 + num_tokens, "completion_tokens": 1}
    usage |= {"prompt_tokens_details": {"audio_tokens": num_tokens}}
    return Answer(200, {}, json.dumps({"choices": [choice], "usage": usage}))


def deaf(body: Body) -> Answer:
    """Drops whatever is no text."""
    text = [part for part in body["messages"][-1]["content"] if part["type"] == "text"]
    return hears({"messages": [{"content": text}]})


@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_hears_honours_all(run: Any) -> None:
    assert find(run, hears) == HONOURED


@pytest.mark.parametrize("run", RUNS)
def test_a_server_that_drops_audio_is_found_out(run: Any) -> None:
    found = find(run, deaf)
    assert found.verdict in (Verdict.IGNORED, Verdict.WRONG), found


def test_a_server_that_refuses_audio_is_no_server_that_ignores() -> None:
    for run in (audio.one_clip, audio.two_clips, audio.is_heard, audio.audio_tokens):
        assert find(run, lambda _: error(400, **FULL)).verdict is Verdict.REFUSED


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({}, False),
        ({"input_modalities": ["text", "image"]}, False),
        ({"input_modalities": ["text", "audio"]}, True),
        ({"architecture": {"input_modalities": ["audio", "text"]}}, True),
        ({"capabilities": {"vision": True, "audio": False}}, False),
        ({"capabilities": ["completion", "audio"]}, True),
    ],
)
def test_servers_say_in_several_ways_that_a_model_takes_audio(card: Body, expected: bool) -> None:
    assert takes(card, EARS) == expected
