"""The scorecard as a table, as Markdown and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from stonechat_server.scorecard.outcome import CHECKS, MARKS, Finding, Verdict

MAX_DETAIL = 120
LEGEND = ", ".join(f"{mark} {verdict.value}" for verdict, mark in MARKS.items())


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The findings about one server, in the order of the checks."""

    label: str
    base_url: str
    model: str
    findings: Sequence[Finding | None]
    """None for a check that was not made."""

    def count(self, verdict: Verdict) -> int:
        """How many checks have this verdict."""
        return Counter(found.verdict for found in self.findings if found is not None)[verdict]


def rows(cards: Sequence[Scorecard]) -> list[list[str]]:
    """The headings, a row for each check that was made, and the sums."""
    table = [["", "check", *(card.label for card in cards)]]
    for at, one in enumerate(CHECKS):
        findings = [card.findings[at] for card in cards]
        marks = ["" if found is None else MARKS[found.verdict] for found in findings]
        if any(marks):
            table.append([one.group, one.name, *marks])
    for verdict, mark in MARKS.items():
        counts = [str(card.count(verdict)) for card in cards]
        table.append(["sum", f"{mark} {verdict.value}", *counts])
    return table


def details(card: Scorecard) -> list[str]:
    """A line for each check that is not honoured: what was seen."""
    pairs = zip(CHECKS, card.findings, strict=True)
    return [
        f"{MARKS[finding.verdict]} {one.name}: {_line(finding.detail)}"
        for one, finding in pairs
        if finding is not None and finding.verdict is not Verdict.HONOURED
    ]


def _line(text: str) -> str:
    """A text in one line that is not too long: some servers answer with a whole traceback."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - 1]}…"


def markdown(cards: Sequence[Scorecard]) -> str:
    """A table to paste, and the details below it."""
    table = rows(cards)
    lines = [f"| {' | '.join(row)} |" for row in table]
    rule = f"|---|---|{':---:|' * len(cards)}"
    parts = [LEGEND, "\n".join([lines[0], rule, *lines[1:]])]
    for card in cards:
        found = "\n".join(f"- {line}" for line in details(card)) or "- everything is honoured"
        parts.append(f"**{card.label}** ({card.model}, {card.base_url})\n\n{found}")
    return "\n\n".join(parts) + "\n"


def as_json(cards: Sequence[Scorecard]) -> str:
    """All findings."""
    servers = [
        {
            "label": card.label,
            "base_url": card.base_url,
            "model": card.model,
            "checks": [
                {"group": one.group, "name": one.name, **asdict(finding)}
                for one, finding in zip(CHECKS, card.findings, strict=True)
                if finding is not None
            ],
        }
        for card in cards
    ]
    return json.dumps({"servers": servers}, indent=1) + "\n"
