"""Print who used what, from the usage ledger."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stonechat_server.observability.ledger.report import UsageRow

VARIABLE = "STONECHAT_LEDGER"
SUMS = ("requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the ledger, the requests and the groups."""
    parser.add_argument(
        "--ledger",
        default=os.environ.get(VARIABLE, "auto"),
        metavar="URL",
        help=f"ledger, as for `stonechat serve` (environment: {VARIABLE}; default: auto)",
    )
    parser.add_argument(
        "--by",
        default="key,user,day",
        metavar="LIST",
        help="columns to group by, comma-separated: key, user, model, day",
    )
    parser.add_argument(
        "--since", type=_date, metavar="DATE", help="first day (UTC), such as 2026-01-31"
    )
    parser.add_argument("--until", type=_date, metavar="DATE", help="last day (UTC)")
    parser.add_argument("--key", metavar="NAME", help="only requests of this key")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.add_argument(
        "--delete-before",
        type=_date,
        metavar="DATE",
        help="delete the entries of earlier days, and print no usage",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the usage. Returns 1 if the ledger cannot be read."""
    import sqlalchemy as sa

    try:
        return _run(arguments)
    except (sa.exc.SQLAlchemyError, ValueError, ImportError) as error:
        print(f"stonechat usage: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    from stonechat_server.observability.ledger import open_database, usage
    from stonechat_server.observability.ledger.location import ledger_place
    from stonechat_server.observability.ledger.report import DIMENSIONS, delete_before

    by = [part.strip() for part in arguments.by.split(",") if part.strip()]
    dimensions = [dimension for part in by for dimension in DIMENSIONS if dimension == part]
    if len(dimensions) < len(by):
        raise ValueError(f"--by accepts {', '.join(DIMENSIONS)}, not {arguments.by}")
    place = ledger_place(arguments.ledger)
    if place is None:
        raise ValueError("the ledger is off; choose one with --ledger")
    engine = open_database(place.url)
    try:
        if arguments.delete_before is not None:
            number = delete_before(engine, arguments.delete_before.timestamp())
            print(f"Deleted {number} entries.", file=sys.stderr)
            return 0
        since, until = arguments.since, arguments.until
        rows = usage(
            engine,
            dimensions,
            since=since.timestamp() if since else None,
            until=(until + timedelta(days=1)).timestamp() if until else None,
            key=arguments.key,
        )
    finally:
        engine.dispose()
    _print(arguments.format, [*by, *SUMS], rows, len(by))
    return 0


def _print(kind: str, headings: Sequence[str], rows: "Sequence[UsageRow]", num_left: int) -> None:
    from stonechat_server.commands.text_table import text_table

    values = [[*row.group, *map(str, _sums(row))] for row in rows]
    if kind == "table":
        print(text_table(headings, values, num_left))
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


def _date(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
