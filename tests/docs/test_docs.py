"""The docs match the code: generated tables are current, and all error codes are documented."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "server" / "stonechat_server"


def test_the_tables_are_up_to_date(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setattr(sys, "argv", ["update_docs.py", "--check"])
    import update_docs

    assert update_docs.main() == 0, capsys.readouterr().out


def error_codes() -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in SERVER.rglob("*.py")]
    return {code for text in sources for code in re.findall(r'\bcode="(\w+)"', text)}


def test_every_error_code_is_documented() -> None:
    pages = (ROOT / "docs" / "api").glob("*.md")
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert {code for code in error_codes() if f"`{code}`" not in text} == set()
