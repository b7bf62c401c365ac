"""Files of clients: the content in a folder, the rest in a table.

A file is complete or absent. Its content is written under another name and synced; a row that
nobody sees yet announces it; it is renamed; then the row is shown. A deletion goes the same way
back. What a killed process leaves behind, `sweep` removes.
"""

import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from stonechat_server.errors import APIError, invalid
from stonechat_server.storage.tables import UNFINISHED, StoredFile, batches, files

Order = Literal["asc", "desc"]
UPLOAD_PREFIX = "upload-"
LEFT_OVER_SECONDS = 3600.0
"""What a process wrote longer ago than this and did not complete, it never will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """Bounds on what the owner of files may keep, and on each file, in bytes."""

    max_file_bytes: int
    max_files: int
    max_bytes: int


def new_file_id() -> str:
    """A random id."""
    return "file-" + secrets.token_hex(12)


class FileStore:
    """The files of all owners. Every method may block, and runs in the thread of `Storage`."""

    def __init__(self, engine: sa.Engine, folder: Path, limits: FileLimits) -> None:
        """`folder` is made if it is missing. Raises `OSError` if it cannot be written."""
        self._engine = engine
        self.folder = folder
        self.limits = limits
        self.clock = time.time
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = self.new_upload()
        probe.touch(mode=0o600)
        probe.unlink()

    def new_upload(self) -> Path:
        """The name under which to write the content of a new file."""
        return self.folder / f"{UPLOAD_PREFIX}{secrets.token_hex(12)}"

    def path(self, file_id: str) -> Path:
        """Where the content of a file lies. The id must be one of the table."""
        return self.folder / file_id

    def room(self, owner: str) -> int:
        """How many bytes the next file of this owner may have. Raises `APIError` if none."""
        limits, now = self.limits, self.clock()
        query = sa.select(
            sa.func.count(), sa.func.coalesce(sa.func.sum(files.c.num_bytes), 0)
        ).where(files.c.owner == owner, _is_live(now))
        with self._engine.connect() as connection:
            num_files, num_bytes = connection.execute(query).one()
        if num_files >= limits.max_files:
            raise _quota(f"There are {num_files} files, the most that a key may keep.")
        if num_bytes >= limits.max_bytes:
            raise _quota(
                f"The files have {num_bytes} bytes, and a key may keep {limits.max_bytes}."
            )
        return min(limits.max_file_bytes, limits.max_bytes - int(num_bytes))

    def keep(self, content: Path, file: StoredFile) -> StoredFile:
        """Take over the content at that path, which must be synced. May be repeated after a kill.

        Returns the file as it is kept. Raises `OSError`.
        """
        with self._engine.begin() as connection:
            query = sa.select(files).where(files.c.id == file.id)
            row = connection.execute(query).one_or_none()
            if row is None:
                connection.execute(sa.insert(files).values(**_values(file), is_kept=False))
            elif row.is_kept:
                return _file(row)
        if content.exists():
            content.replace(self.path(file.id))
            sync_folder(self.folder)
        elif not self.path(file.id).exists():
            raise FileNotFoundError(f"{content} is gone")
        with self._engine.begin() as connection:
            show = sa.update(files).where(files.c.id == file.id).values(is_kept=True)
            connection.execute(show)
            row = connection.execute(query).one()
        return _file(row)

    def find(self, owner: str, file_id: str) -> StoredFile:
        """A file of this owner. Raises `APIError` 404."""
        if "\0" in file_id:  # PostgreSQL takes no such text
            raise no_such_file(file_id)
        query = sa.select(files).where(
            files.c.id == file_id, files.c.owner == owner, _is_live(self.clock())
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise no_such_file(file_id)
        return _file(row)

    def list(
        self, owner: str, *, purpose: str | None, limit: int, order: Order, after: str | None
    ) -> tuple[Sequence[StoredFile], bool]:
        """A page of the files of an owner, and whether there are more. Raises `APIError` 404."""
        conditions = [files.c.owner == owner, _is_live(self.clock())]
        if purpose is not None:
            conditions.append(files.c.purpose == purpose.replace("\0", ""))
        place = sa.tuple_(files.c.created, files.c.id)
        if after is not None:
            start = self.find(owner, after)
            bound = sa.tuple_(sa.literal(start.created), sa.literal(start.id))
            conditions.append(place > bound if order == "asc" else place < bound)
        columns = [files.c.created, files.c.id]
        ordering = columns if order == "asc" else [column.desc() for column in columns]
        query = sa.select(files).where(*conditions).order_by(*ordering).limit(limit + 1)
        with self._engine.connect() as connection:
            found = [_file(row) for row in connection.execute(query)]
        return found[:limit], len(found) > limit

    def delete(self, owner: str, file_id: str) -> None:
        """Delete a file. Raises `APIError`: 404, and 409 while a batch needs it."""
        self.find(owner, file_id)
        query = sa.select(batches.c.id).where(
            batches.c.input_file_id == file_id, batches.c.status.in_(UNFINISHED)
        )
        with self._engine.connect() as connection:
            batch_id = connection.execute(query.limit(1)).scalar()
        if batch_id is not None:
            message = f"{batch_id} still reads this file. Cancel the batch, or wait for its end."
            raise APIError(409, message, code="file_in_use")
        self._remove([file_id])

    def sweep(self) -> int:
        """Remove what has expired and what was left behind. Returns the number of files."""
        now = self.clock()
        in_use = sa.union_all(
            *(
                sa.select(column).where(batches.c.status.in_(UNFINISHED))
                for column in (batches.c.input_file_id, batches.c.output_id, batches.c.errors_id)
            )
        )
        old = sa.or_(
            files.c.expires_at <= now,
            sa.and_(~files.c.is_kept, files.c.created < now - LEFT_OVER_SECONDS),
        )
        query = sa.select(files.c.id).where(old, files.c.id.not_in(in_use))
        with self._engine.connect() as connection:
            ids = list(connection.execute(query).scalars())
        self._remove(ids)
        unfinished = sa.select(batches.c.id).where(batches.c.status.in_(UNFINISHED))
        with self._engine.connect() as connection:
            running = set(connection.execute(unfinished).scalars())
        left = [*self.folder.glob(UPLOAD_PREFIX + "*"), *self.folder.glob("batch_*.lock")]
        for path in left:
            with suppress(FileNotFoundError):  # its upload has ended, or another server sweeps too
                is_old = path.stat().st_mtime < now - LEFT_OVER_SECONDS
                if is_old and path.stem not in running:
                    path.unlink()
        return len(ids)

    def _remove(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        chosen = files.c.id.in_(ids)
        with self._engine.begin() as connection:
            connection.execute(sa.update(files).where(chosen).values(is_kept=False))
        for file_id in ids:
            self.path(file_id).unlink(missing_ok=True)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(files).where(chosen))


def no_such_file(file_id: str) -> APIError:
    """A 404, also for a file of somebody else."""
    shown = file_id[:100].encode("utf-8", "replace").decode()
    return APIError(404, f"There is no file '{shown}'.", param="file_id", code="file_not_found")


def too_large(limit: int) -> APIError:
    """A 413 for a file beyond a limit in bytes."""
    message = (
        f"The file is larger than {limit} bytes, what this key may still keep: see the server's "
        "--max-file-size and --file-space-per-key."
    )
    return APIError(413, message, param="file", code="file_too_large")


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last. Windows has no such call, and needs none."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lifetime(param: str, seconds: int) -> int:
    """Check the seconds that a client wants a file to be kept. Raises `APIError` 400."""
    if not 3600 <= seconds <= 2_592_000:
        message = f"'{param}.seconds' must be from 3600 (an hour) to 2592000 (30 days)."
        raise invalid(f"{param}.seconds", message)
    return seconds


def _quota(message: str) -> APIError:
    more = "Delete some (DELETE /v1/files/ID), or raise the server's limits: --files-per-key and "
    return APIError(403, f"{message} {more}--file-space-per-key.", code="file_quota_exceeded")


def _is_live(now: float) -> sa.ColumnElement[bool]:
    return sa.and_(files.c.is_kept, sa.or_(files.c.expires_at.is_(None), files.c.expires_at > now))


def _values(file: StoredFile) -> dict[str, object]:
    return {name: getattr(file, name) for name in StoredFile.__slots__}


def _file(row: sa.Row[tuple[object, ...]]) -> StoredFile:
    return StoredFile(**{name: getattr(row, name) for name in StoredFile.__slots__})
