"""Usage summed by key, user, model, endpoint and day."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import sqlalchemy as sa

from stonechat_server.observability.ledger.table import requests

Dimension = Literal["key", "user", "model", "endpoint", "day"]
DIMENSIONS: tuple[Dimension, ...] = ("key", "user", "model", "endpoint", "day")
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums over the requests of one group. A request failed if its status is 400 or more."""

    group: tuple[str, ...]
    num_requests: int
    num_failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def usage(
    engine: sa.Engine,
    by: Sequence[Dimension] = ("key", "user", "day"),
    *,
    since: float | None = None,
    until: float | None = None,
    key: str | None = None,
) -> list[UsageRow]:
    """Sum the usage per group of the dimensions in `by`; the rows are sorted by group.

    `since` (inclusive) and `until` (exclusive) are seconds since 1970. Days are UTC. The user of a
    request is its `safety_identifier`, or its `user` if there is no `safety_identifier`.
    """
    columns = [_column(dimension) for dimension in by]
    failed = sa.case((requests.c.status >= 400, 1), else_=0)
    query = sa.select(
        *columns,
        sa.func.count(),
        sa.func.sum(failed),
        sa.func.sum(requests.c.prompt_tokens),
        sa.func.sum(requests.c.cached_tokens),
        sa.func.sum(requests.c.completion_tokens),
    )
    if since is not None:
        query = query.where(requests.c.created >= since)
    if until is not None:
        query = query.where(requests.c.created < until)
    if key is not None:
        query = query.where(requests.c.key == key)
    positions: list[sa.ColumnClause[object]] = [
        sa.literal_column(str(number)) for number in range(1, len(by) + 1)
    ]
    query = query.group_by(*positions).order_by(*positions)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [_row(by, tuple(row)) for row in rows if row[len(by)]]


def delete_before(engine: sa.Engine, until: float) -> int:
    """Delete the entries of requests that arrived before `until`; returns their number."""
    with engine.begin() as connection:
        return connection.execute(sa.delete(requests).where(requests.c.created < until)).rowcount


def _column(dimension: Dimension) -> sa.Label[object]:
    column: sa.ColumnElement[object]
    match dimension:
        case "user":
            column = sa.func.coalesce(requests.c.safety_identifier, requests.c.user, "")
        case "day":
            column = sa.func.floor(requests.c.created / SECONDS_PER_DAY)
        case _:
            column = requests.c[dimension]
    return column.label(f"group_{dimension}")


def _row(by: Sequence[Dimension], values: tuple[object, ...]) -> UsageRow:
    group = tuple(
        _day(value) if dimension == "day" else str(value)
        for dimension, value in zip(by, values, strict=False)
    )
    sums = [int(str(value)) for value in values[len(by) :]]
    return UsageRow(group, sums[0], sums[1], sums[2], sums[3], sums[4])


def _day(number: object) -> str:
    return datetime.fromtimestamp(float(str(number)) * SECONDS_PER_DAY, UTC).strftime("%Y-%m-%d")
