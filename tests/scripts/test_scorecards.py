"""The script that writes the scorecards of docs/check.md, without servers."""

import sys
from pathlib import Path

import pytest

from stonechat_server.scorecard.outcome import CHECKS, Finding, Verdict
from stonechat_server.scorecard.report import Scorecard

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"


def test_the_page_gets_the_table_and_no_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import scorecards

    page = tmp_path / "check.md"
    page.write_text(f"before\n\n{scorecards.START}\nold\n{scorecards.END}\n\nafter\n")
    started = []

    def card_of(name: str, command: list[str], model: Path, log: Path) -> Scorecard:
        started.append((name, command[0]))
        verdict = Verdict.HONOURED if name == "Stonechat" else Verdict.IGNORED
        findings = [Finding(verdict, "why")] * len(CHECKS)
        return Scorecard(name, "http://127.0.0.1:1/v1", str(model), findings)

    monkeypatch.setattr(scorecards, "PAGE", page)
    monkeypatch.setattr(scorecards, "card_of", card_of)
    words = ["x", "/home/me/m.gguf", "--peer", "other=run {port}", "--keep", str(tmp_path / "k")]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):  # the second time the findings are there
        assert scorecards.main() == 0
    assert [name for name, _ in started] == ["Stonechat", "other"]
    text = page.read_text()
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "|  | check | Stonechat | other |" in text
    assert "**other**:\n\n- ○" in text
    assert "/home/me" not in text
    assert "127.0.0.1" not in text
