"""The requests of docs/audio.md are answered by a model that hears."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stonechat_server.client.synthetic_audio import wav
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info, text_script
from tests.server.fake_media import AUDIO, TEMPLATE, Ears
from tests.server.live import live_server

PAGE = (Path(__file__).parents[2] / "docs" / "audio.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- audio: (\w+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Path("speech.wav").write_bytes(wav(0.5, "a"))
    engine = FakeEngine(
        text_script("Some", " words."),
        model_info(audio=AUDIO),
        ByteTokenizer(chat_template=TEMPLATE),
        media_processor=Ears(),
    )
    with live_server(engine, served_model_name=["Qwen2-Audio-7B-Instruct"]) as server:
        yield server.url


def test_the_examples_are_those_that_are_tested() -> None:
    assert sorted(EXAMPLES) == ["curl", "openai", "transcription"]
    assert PAGE.count(ADDRESS) == len(EXAMPLES)


@pytest.mark.parametrize("name", ["openai", "transcription"])
def test_the_program_prints_an_answer(
    name: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program = EXAMPLES[name].replace(ADDRESS, url)
    exec(compile(program, f"audio.md: {name}", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.startswith("Some words.")
    if name == "openai":
        assert "8 tokens of the audio" in printed


def test_the_request_by_curl_is_answered(url: str) -> None:
    command = shlex.split(EXAMPLES["curl"])
    assert command[:2] + command[3:] == ["curl", "-sS", "-F", "file=@speech.wav"]
    files = {"file": ("speech.wav", Path("speech.wav").read_bytes())}
    answer = httpx.post(command[2].replace(ADDRESS, url), files=files, timeout=60).json()
    assert answer["text"] == "Some words."
