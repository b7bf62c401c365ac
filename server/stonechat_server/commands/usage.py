"""Print who used what, from the usage ledger."""

import csv
import json
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from stonechat_server.options import BaseOptions, UserError, option, split
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.suggest import did_you_mean
from stonechat_server.terminal.tables import new_console, new_table

if TYPE_CHECKING:
    from stonechat_server.observability.ledger.report import UsageRow

SUMS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")


class Options(BaseOptions):
    """The options of `stonechat usage`: the ledger, the requests and their groups."""

    settings: Annotated[Settings, Only("ledger")]
    by: Annotated[tuple[str, ...], BeforeValidator(split)] = option(
        ("key", "user", "day"),
        "columns to group by: some of key,user,model,endpoint,day",
        metavar="LIST",
    )
    since: date | None = option(None, "first day (UTC), such as 2026-01-31", metavar="DATE")
    until: date | None = option(None, "last day (UTC)", metavar="DATE")
    key: str | None = option(None, "only requests of this key", metavar="NAME")
    format: Literal["table", "json", "csv"] = option("table", "how to print the usage")
    delete_before: date | None = option(
        None, "delete the entries of earlier days, and print no usage", metavar="DATE"
    )


def run(options: Options) -> int:
    """Print the usage. Raises `UserError` if the ledger cannot be read."""
    import sqlalchemy as sa

    from stonechat_server.observability.ledger.table import plain_reason

    try:
        return _run(options)
    except (sa.exc.SQLAlchemyError, ValueError, ImportError, OSError) as error:
        raise UserError(plain_reason(error)) from error


def _run(options: Options) -> int:
    import sqlalchemy as sa

    from stonechat_server.observability.ledger import open_database, usage
    from stonechat_server.observability.ledger.location import ledger_place
    from stonechat_server.observability.ledger.report import DIMENSIONS, delete_before

    by = options.by
    dimensions = [dimension for part in by for dimension in DIMENSIONS if dimension == part]
    if len(dimensions) < len(by):
        unknown = next(part for part in by if part not in DIMENSIONS)
        hint = did_you_mean(unknown, DIMENSIONS)
        raise ValueError(f"--by accepts {', '.join(DIMENSIONS)}, not {unknown}{hint}")
    if options.since and options.until and options.since > options.until:
        raise ValueError(f"--since {options.since} is after --until {options.until}")
    place = ledger_place(options.settings.ledger)
    if place is None:
        raise ValueError("the ledger is off; choose one with --ledger")
    if place.file is not None and not place.file.is_file():
        raise ValueError(
            f"there is no ledger {place.file}; a server writes it when it has answered a request"
        )
    try:
        engine = open_database(place.url)
    except sa.exc.DatabaseError as error:
        if place.file is not None and "not a database" in str(error):
            raise ValueError(f"{place.file} is no usage ledger: it is not a SQLite file") from error
        raise
    try:
        if options.delete_before is not None:
            number = delete_before(engine, _start(options.delete_before))
            print(f"Deleted {number} entries.", file=sys.stderr)
            return 0
        rows = usage(
            engine,
            dimensions,
            since=_start(options.since) if options.since else None,
            until=_start(options.until + timedelta(days=1)) if options.until else None,
            key=options.key,
        )
    finally:
        engine.dispose()
    _print(options.format, [*by, *SUMS], rows, len(by))
    return 0


def _print(kind: str, headings: Sequence[str], rows: "Sequence[UsageRow]", num_left: int) -> None:
    values = [[*row.group, *map(str, _sums(row))] for row in rows]
    if kind == "table" and not rows:
        print("No requests are recorded for this choice.")
    elif kind == "table":
        new_console().print(new_table(headings, values, num_left=num_left))
    elif kind == "csv":
        csv.writer(sys.stdout).writerows([headings, *values])
    else:
        objects = [dict(zip(headings, (*r.group, *_sums(r)), strict=True)) for r in rows]
        print(json.dumps(objects, indent=2))


def _sums(row: "UsageRow") -> tuple[int, ...]:
    return (
        row.num_requests,
        row.num_failed,
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
    )


def _start(day: date) -> float:
    """Seconds from 1970 to the beginning of a day in UTC."""
    return datetime.combine(day, time(), UTC).timestamp()
