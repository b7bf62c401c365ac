"""The location of the ledger."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs

AUTO = "auto"
OFF = "off"


@dataclass(frozen=True, slots=True)
class LedgerPlace:
    """A database URL, and the folder of the journal in front of it."""

    url: str
    journal: Path


def ledger_place(ledger: str, journal: Path | None = None) -> LedgerPlace | None:
    """The place that the settings name; None if the ledger is off."""
    if ledger == OFF:
        return None
    folder = platformdirs.user_data_path("stonechat")
    url = f"sqlite:///{folder / 'usage.db'}" if ledger == AUTO else ledger
    for prefix in ("postgresql://", "postgres://"):
        if url.startswith(prefix):
            url = "postgresql+psycopg://" + url.removeprefix(prefix)
    return LedgerPlace(url, journal or folder / "usage-journal")
