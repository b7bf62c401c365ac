"""PDF files on the page: attached, sent, kept, exported and imported."""

import base64
import json
from pathlib import Path

from tests.models.media.pdfs import pdf

from .driver import Page, answered, ask, delete, download, expect, piece, press, reopen, stream_of

REPORT = pdf("Sales rose.")


def test_a_document_is_sent_before_the_text_and_kept(page: Page, tmp_path: Path) -> None:
    bodies = stream_of(page, [piece(content="Hello."), piece("stop")])
    for name in ("report.pdf", "wrong.pdf"):
        (tmp_path / name).write_bytes(REPORT)
        page.set_input_files("#attach-file", [tmp_path / name])
        page.wait_for_selector(f"#files .file >> text={name}")
    press(page, "Remove wrong.pdf")
    ask(page, "What does it say?")
    answered(page)
    data = base64.b64encode(REPORT).decode()
    file = {"filename": "report.pdf", "file_data": f"data:application/pdf;base64,{data}"}
    assert bodies[-1]["messages"][-1]["content"] == [
        {"type": "file", "file": file},
        {"type": "text", "text": "What does it say?"},
    ]
    reopen(page, "What does it say?")
    expect(page.locator(".bubble .file")).to_have_text("report.pdf")
    text = download(page, "Export as Markdown", tmp_path).read_text()
    assert "Document report.pdf (not in this file)" in text
    exported = download(page, "Export as JSON", tmp_path)
    stored = json.loads(exported.read_text())
    attached = stored["conversations"][0]["turns"][0]["images"]
    attached += [
        {"name": "x", "url": f"data:application/pdf;base64,{bad}"} for bad in ("", "#", '"')
    ]
    exported.write_text(json.dumps(stored))
    delete(page)
    page.set_input_files("#import-file", exported)
    page.wait_for_selector("text=Imported 1 conversation.")
    reopen(page, "What does it say?")
    expect(page.locator(".bubble .file")).to_have_text("report.pdf")
