"""The request of docs/documents.md is answered, with the text of the file in its prompt."""

import re
from pathlib import Path

import pytest

from tests.models.media.pdfs import pdf
from tests.server.fake_engine import FakeEngine, text_script
from tests.server.live import live_server

PAGE = (Path(__file__).parents[2] / "docs" / "documents.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"<!-- documents: openai -->\n```python\n(.*?)```", PAGE, re.DOTALL)
[FORM] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def test_the_program_prints_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    Path("report.pdf").write_bytes(pdf("The text of the page.", "", "More text."))
    engine = FakeEngine(text_script("Some", " words."))
    with live_server(engine, served_model_name=["SmolLM2-135M-Instruct"]) as server:
        program = EXAMPLE.replace(ADDRESS, server.url)
        exec(compile(program, "documents.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.startswith("Some words.")
    assert FORM in engine.prompt
