"""The request of docs/video.md is answered by a model that takes videos."""

import re
from pathlib import Path

import pytest

from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info, text_script
from tests.server.fake_media import (
    IMAGES,
    TEMPLATE,
    VIDEO,
    FakeMediaProcessor,
    mp4,
)
from tests.server.live import live_server

PAGE = (Path(__file__).parents[2] / "docs" / "video.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"<!-- video: openai -->\n```python\n(.*?)```", PAGE, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def test_the_program_prints_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Path("video.mp4").write_bytes(mp4(num_tokens=8))
    engine = FakeEngine(
        text_script("Some", " words."),
        model_info(images=IMAGES, video=VIDEO),
        ByteTokenizer(chat_template=TEMPLATE),
        media_processor=FakeMediaProcessor(),
    )
    with live_server(engine, served_model_name=["Qwen3-VL-2B-Instruct"]) as server:
        program = EXAMPLE.replace(ADDRESS, server.url)
        exec(compile(program, "video.md", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.startswith("Some words.")
    assert "8 tokens of the video" in printed
