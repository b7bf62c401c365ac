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
    file: Path | None = None
    """The SQLite file, if the place is the default one or was named by its path."""


def ledger_place(ledger: str, journal: Path | None = None) -> LedgerPlace | None:
    """The place that the settings name; None if the ledger is off. A path is a SQLite file."""
    if ledger == OFF:
        return None
    folder = platformdirs.user_data_path("stonechat")
    if "://" not in ledger:
        path = folder / "usage.db" if ledger == AUTO else Path(ledger).expanduser().absolute()
        beside = path.parent / ("usage-journal" if ledger == AUTO else f"{path.stem}-entries")
        return LedgerPlace(f"sqlite:///{path}", journal or beside, path)
    for prefix in ("postgresql://", "postgres://"):
        if ledger.startswith(prefix):
            ledger = "postgresql+psycopg://" + ledger.removeprefix(prefix)
    return LedgerPlace(ledger, journal or folder / "usage-journal")
