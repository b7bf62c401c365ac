"""Files and batches as they are stored: in tables, in the ledger's database if there is one."""

from dataclasses import dataclass

import sqlalchemy as sa

from stonechat_server.observability.ledger.table import table_of

UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
"""The statuses of batches that still need their input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file without its content. Times are seconds since 1970."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created: float
    expires_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """A row of the table. Times are seconds since 1970, of a status that was reached."""

    id: str
    owner: str
    endpoint: str
    model: str | None = None
    """What the lines of the input name, once it has been checked."""
    input_file_id: str
    completion_window: str = "24h"
    status: str = "validating"
    created: float
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_id: str
    """Chosen with the batch, so that its end can be repeated after a kill. So is `errors_id`."""
    errors_id: str
    has_output: bool = False
    has_errors: bool = False
    output_lifetime: int | None = None
    """Seconds that the files of results are kept; None: until they are deleted."""
    num_total: int = 0
    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    problems: str | None = None
    """A JSON list of objects: what is wrong with the input."""
    metadata: str | None = None
    """A JSON object of strings."""

    @property
    def is_unfinished(self) -> bool:
        """Whether something of it is still to be done."""
        return self.status in UNFINISHED


metadata = sa.MetaData()
IS_KEPT = sa.Column("is_kept", sa.Boolean, nullable=False)
"""False while the content is put in place, and again once it is to be deleted."""
files = table_of(StoredFile, "files", metadata, IS_KEPT, indexed={"owner"})
batches = table_of(StoredBatch, "batches", metadata, indexed={"owner", "input_file_id", "status"})
