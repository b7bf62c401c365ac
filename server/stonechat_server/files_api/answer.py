"""What clients of `/v1/files` receive."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.storage.tables import StoredFile


class FileObject(msgspec.Struct, kw_only=True):
    """A file without its content. Times are seconds since 1970."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | UnsetType = UNSET
    """Absent: the file is kept until it is deleted."""
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """A page of files. The ids are empty if it has none."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str
    last_id: str
    has_more: bool


class DeletedFile(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_object(file: StoredFile) -> FileObject:
    """What clients see of a file."""
    return FileObject(
        id=file.id,
        bytes=file.num_bytes,
        created_at=int(file.created),
        expires_at=UNSET if file.expires_at is None else file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )
