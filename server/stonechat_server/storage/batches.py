"""Batches in their table. Statuses only move forwards, whoever else writes at the same time."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields

import msgspec
import sqlalchemy as sa

from stonechat_server.errors import APIError
from stonechat_server.storage.files import new_file_id
from stonechat_server.storage.tables import UNFINISHED, StoredBatch, batches

COLUMNS = tuple(field.name for field in fields(StoredBatch))


def new_batch(
    owner: str,
    endpoint: str,
    input_file_id: str,
    created: float,
    window_seconds: int,
    *,
    output_lifetime: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> StoredBatch:
    """A batch that is not stored yet."""
    return StoredBatch(
        id="batch_" + secrets.token_hex(12),
        owner=owner,
        endpoint=endpoint,
        input_file_id=input_file_id,
        created=created,
        expires_at=int(created) + window_seconds,
        output_id=new_file_id(),
        errors_id=new_file_id(),
        output_lifetime=output_lifetime,
        metadata=None if metadata is None else msgspec.json.encode(metadata).decode(),
    )


class BatchStore:
    """The batches of all owners. Every method may block, and runs in the thread of `Storage`."""

    def __init__(self, engine: sa.Engine, max_unfinished: int) -> None:
        """`max_unfinished` bounds the batches of an owner that have not ended."""
        self._engine = engine
        self._max_unfinished = max_unfinished

    def add(self, batch: StoredBatch) -> None:
        """Store a new batch. Raises `APIError` 429 if its owner has too many unfinished ones."""
        count = sa.select(sa.func.count()).where(
            batches.c.owner == batch.owner, batches.c.status.in_(UNFINISHED)
        )
        with self._engine.begin() as connection:
            number = connection.execute(count).scalar_one()
            if number >= self._max_unfinished:
                message = (
                    f"{number} batches of this key have not ended, the most that a key may have "
                    "(--batches-per-key). Wait for one, or cancel one."
                )
                raise APIError(429, message, type="rate_limit_error", code="too_many_batches")
            values = {name: getattr(batch, name) for name in COLUMNS}
            connection.execute(sa.insert(batches).values(values))

    def find(self, owner: str, batch_id: str) -> StoredBatch:
        """A batch of this owner. Raises `APIError` 404."""
        batch_id = batch_id.replace("\0", "")  # PostgreSQL takes no such text
        query = sa.select(batches).where(batches.c.id == batch_id, batches.c.owner == owner)
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            shown = batch_id[:100].encode("utf-8", "replace").decode()
            message = f"There is no batch '{shown}'."
            raise APIError(404, message, param="batch_id", code="batch_not_found")
        return _batch(row)

    def list(
        self, owner: str, *, limit: int, after: str | None
    ) -> tuple[Sequence[StoredBatch], bool]:
        """A page, the newest first, and whether there are more. Raises `APIError` 404."""
        conditions = [batches.c.owner == owner]
        if after is not None:
            start = self.find(owner, after)
            place = sa.tuple_(batches.c.created, batches.c.id)
            conditions.append(place < sa.tuple_(sa.literal(start.created), sa.literal(start.id)))
        query = sa.select(batches).where(*conditions)
        query = query.order_by(batches.c.created.desc(), batches.c.id.desc()).limit(limit + 1)
        with self._engine.connect() as connection:
            found = [_batch(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def unfinished(self) -> Sequence[StoredBatch]:
        """The batches of all owners that have not ended, the oldest first."""
        query = sa.select(batches).where(batches.c.status.in_(UNFINISHED))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(batches.c.created, batches.c.id))
            return [_batch(row) for row in rows]

    def move(self, batch: StoredBatch, old: Sequence[str], **values: object) -> StoredBatch:
        """Set columns if the status is one of `old`. Returns the batch as it is then."""
        chosen = sa.and_(batches.c.id == batch.id, batches.c.status.in_(old))
        if values:
            with self._engine.begin() as connection:
                connection.execute(sa.update(batches).where(chosen).values(values))
        return self.find(batch.owner, batch.id)


def _batch(row: sa.Row[tuple[object, ...]]) -> StoredBatch:
    mapping = row._mapping
    return StoredBatch(**{name: mapping[name] for name in COLUMNS})
