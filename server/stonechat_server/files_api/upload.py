"""Reads an upload into the store: bounded in size and in time, and complete or absent."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from starlette.requests import Request

from stonechat_server.admission.refusals import too_many_requests
from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.request.body import MAX_DISCARDED_BYTES
from stonechat_server.request.form import LIST, UploadForm
from stonechat_server.settings import Settings
from stonechat_server.storage.files import lifetime, new_file_id, too_large
from stonechat_server.storage.storage import Storage
from stonechat_server.storage.tables import StoredFile

WRITE_BYTES = 2**20
"""What has arrived is written in pieces of this size, in a thread."""
PACE_BYTES = 2**20
"""Each further piece of this size may take `body_timeout` again."""
FORM_BYTES = 65_536
"""What the form may have beside its file."""
BATCH_FILE_SECONDS = 30 * 86_400
"""How long the input of a batch is kept, unless the client says it. Other files are kept until they
are deleted."""
BATCH = "batch"
MEDIA_PURPOSES = frozenset({"vision", "user_data"})
"""The purposes of files that requests may use as images or audio. Both mean the same here."""
PURPOSES = MEDIA_PURPOSES | {BATCH}
MAX_UPLOADS = 4
"""At most this many files of a key are uploaded at the same time."""
FIELDS = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})


async def receive_upload(
    request: Request, settings: Settings, storage: Storage, owner: str
) -> StoredFile:
    """Store the file of a form.

    Raises `APIError`: 400, 403, 408, 413, 429, or 507 if the disk is full. A form that is refused
    is still read up to a bound: a client reads no answer while it sends.
    """
    path = storage.files.new_upload()
    stream = request.stream()
    storage.num_uploads[owner] += 1
    try:
        if storage.num_uploads[owner] > MAX_UPLOADS:
            message = f"A key may upload {MAX_UPLOADS} files at the same time. Try again later."
            raise too_many_requests(message, reason="uploads", retry_after=1.0)
        max_bytes = await storage.run(storage.files.room, owner)
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > max_bytes + FORM_BYTES:
            raise too_large(max_bytes)
        form = await _receive(request, stream, settings, path, max_bytes)
        file = _stored(form, owner, storage.files.clock())
        # The quota again: other uploads may have come in meanwhile.
        if await storage.run(storage.files.room, owner) < form.num_bytes:
            raise too_large(max_bytes)
        return await storage.run(storage.files.keep, path, file)
    except APIError as error:
        await _discard(stream, settings.body_timeout)
        error.headers.setdefault("connection", "close")
        raise
    except OSError as error:
        await _discard(stream, settings.body_timeout)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "The disk of the server is full; the file is not kept."
        raise APIError(507, message, type="server_error", code="disk_full") from error
    finally:
        storage.num_uploads[owner] -= 1
        path.unlink(missing_ok=True)


async def _receive(
    request: Request, stream: AsyncIterator[bytes], settings: Settings, path: Path, max_bytes: int
) -> UploadForm:
    """Write the file of the form to `path`, and sync it."""
    waiting = BytesIO()
    form = UploadForm(request.headers.get("content-type", ""), waiting, max_bytes, too_large)
    started = asyncio.get_running_loop().time()
    num_received = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        async with asyncio.timeout(settings.body_timeout) as limit:
            async for piece in stream:
                num_received += len(piece)
                if num_received > max_bytes + FORM_BYTES:
                    raise too_large(max_bytes)
                form.feed(piece)
                num_paces = 1 + num_received // PACE_BYTES
                limit.reschedule(started + settings.body_timeout * num_paces)
                if waiting.tell() >= WRITE_BYTES:
                    await asyncio.to_thread(_write, descriptor, waiting)
        form.finish()
        await asyncio.to_thread(_write, descriptor, waiting)
        await asyncio.to_thread(os.fsync, descriptor)
    except TimeoutError:
        message = (
            f"The file did not arrive in time: {PACE_BYTES} bytes of it may take "
            f"{settings.body_timeout:g} s."
        )
        raise APIError(408, message, code="request_timeout") from None
    finally:
        os.close(descriptor)
    return form


def _write(descriptor: int, waiting: BytesIO) -> None:
    rest = waiting.getbuffer()
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    finally:
        rest.release()
    waiting.seek(0)
    waiting.truncate()


async def _discard(stream: AsyncIterator[bytes], seconds: float) -> None:
    """Read what still comes of the body within the bounds that `read_body` has, and drop it."""
    num_bytes = 0
    with suppress(TimeoutError, RuntimeError):  # RuntimeError: the stream has been read
        async with asyncio.timeout(seconds):
            async for piece in stream:
                num_bytes += len(piece)
                if num_bytes > MAX_DISCARDED_BYTES:
                    return


def _stored(form: UploadForm, owner: str, now: float) -> StoredFile:
    """The record of the file of a complete form. Raises `APIError` 400."""
    purpose = form.fields.get("purpose")
    if purpose is None:
        message = "Missing required parameter: 'purpose'."
        raise invalid("purpose", message, "missing_required_parameter")
    if purpose not in PURPOSES:
        known = ", ".join(sorted(PURPOSES))
        raise unsupported("purpose", f"Only files of these purposes are kept here: {known}.")
    unknown = sorted({*form.fields, *(name + LIST for name in form.lists)} - FIELDS)
    if unknown:
        raise unsupported(unknown[0], f"The form may have {', '.join(sorted(FIELDS))} and 'file'.")
    assert form.filename is not None
    return StoredFile(
        id=new_file_id(),
        owner=owner,
        filename=form.filename,
        purpose=purpose,
        num_bytes=form.num_bytes,
        created=now,
        expires_at=_expiry(form.fields, purpose, int(now)),
    )


def _expiry(fields: dict[str, str], purpose: str, now: int) -> int | None:
    anchor = fields.get("expires_after[anchor]")
    seconds = fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return now + BATCH_FILE_SECONDS if purpose == BATCH else None
    if anchor != "created_at":
        raise invalid("expires_after.anchor", "'expires_after[anchor]' must be created_at.")
    if seconds is None or not (seconds.isascii() and seconds.isdigit()):
        raise invalid("expires_after.seconds", "'expires_after[seconds]' must be a whole number.")
    return now + lifetime("expires_after", int(seconds[:12]))
