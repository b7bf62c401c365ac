"""Audio on the page: attached, played, sent, kept and exported."""

import base64
from pathlib import Path
from typing import Any

import pytest

from stonechat_server.client.synthetic_audio import wav

from .driver import Page, Route, answered, ask, expect, piece, press, reopen, stream_of


def use_model(page: Page, modalities: list[str], refusal: str = "") -> None:
    """Let the list of models say what its model reads."""

    def fulfil(route: Route) -> None:
        listed = route.fetch().json()
        for card in listed["data"]:
            card["input_modalities"] = modalities
            card["stonechat"]["audio_refusal"] = refusal
        route.fulfill(json=listed)

    page.route("**/v1/models", fulfil)
    page.dispatch_event("#key", "change")  # loads the list again
    title = "audio, PDF and text files" if "audio" in modalities else "Attach PDF and text files"
    page.wait_for_selector(f"#attach[title*='{title}']")


@pytest.fixture
def sent(page: Page) -> list[dict[str, Any]]:
    """The bodies of chat requests, each of which is answered."""
    details = {"cached_tokens": 7, "audio_tokens": 25}
    usage = {"prompt_tokens": 90, "completion_tokens": 2, "prompt_tokens_details": details}
    end = [piece("stop"), {"choices": [], "usage": usage}]
    bodies = stream_of(page, [piece(content="Hello."), *end])
    use_model(page, ["text", "audio"])
    return bodies


def attach(page: Page, folder: Path, name: str, data: bytes) -> None:
    before = page.locator("#files .sound audio").count()
    path = folder / name
    path.write_bytes(data)
    page.set_input_files("#attach-file", [path])
    expect(page.locator("#files .sound audio")).to_have_count(before + 1)


def test_audio_is_sent_before_the_text_and_kept(
    page: Page, sent: list[dict[str, Any]], tmp_path: Path
) -> None:
    clip = wav(0.2, "a")
    attach(page, tmp_path, "clip.wav", clip)
    attach(page, tmp_path, "wrong.wav", wav(0.1, "b"))
    press(page, "Remove wrong.wav")
    ask(page, "What is said?")
    answered(page)
    audio, text = sent[-1]["messages"][-1]["content"]
    assert (audio["type"], audio["input_audio"]["format"]) == ("input_audio", "wav")
    assert base64.b64decode(audio["input_audio"]["data"]) == clip
    assert text == {"type": "text", "text": "What is said?"}
    expect(page.locator(".stats")).to_contain_text("90 prompt tokens (25 of audio, 7 cached)")
    reopen(page, "What is said?")
    expect(page.locator(".bubble audio")).to_have_count(1)


def test_a_model_that_does_not_hear_gets_none(page: Page, tmp_path: Path) -> None:
    use_model(page, ["text"], "soundfile is missing")
    path = tmp_path / "clip.wav"
    path.write_bytes(wav(0.1, "a"))
    page.set_input_files("#attach-file", [path])
    says = "clip.wav is not attached. This model takes no audio: soundfile is missing."
    page.wait_for_selector(f"text={says}")


def test_other_audio_is_explained(page: Page, sent: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "clip.m4a"
    path.write_bytes(b"....ftypM4A ")
    page.set_input_files("#attach-file", [path])
    page.wait_for_selector("text=clip.m4a cannot be sent. WAV, MP3, FLAC and Ogg files work.")
