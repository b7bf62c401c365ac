"""Hands files to processors, which have processes of their own."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol, TypeVar

from stonechat_models import InvalidMediaError, TooManyMediaError
from stonechat_server.background import call_soon
from stonechat_server.media.budget import Share, busy
from stonechat_server.media.errors import refused
from stonechat_server.media.references import MediaReference

Options = TypeVar("Options", contravariant=True)
Result = TypeVar("Result")


class Processor(Protocol[Options, Result]):
    """Works on files, such as `MediaProcessor`."""

    def prepare(self, files: Sequence[bytes], options: Options) -> "Future[list[Result]]": ...


async def processed(
    processor: Processor[Options, Result],
    reference: MediaReference,
    content: bytes,
    options: Options,
    files: Share,
) -> Result:
    """What the processor makes of a file, which is its own: the file counts until it is done, also
    if nobody waits for it.

    Raises `APIError` 400 that names the part, and `RefusedError` 429.
    """
    assert reference.modality is not None, "the file is read"
    loop = asyncio.get_running_loop()
    files.hand_over(len(content))
    release = partial(call_soon, loop, partial(files.budget.give_back, len(content)))

    def submit() -> "Future[list[Result]]":
        try:
            future = processor.prepare([content], options)
        except BaseException:
            release()
            raise
        future.add_done_callback(lambda _: release())
        return future

    # In a thread, because it computes a hash of the file. The thread runs in any case. No local
    # variable keeps the future: its error refers to this frame.
    run = loop.run_in_executor
    try:
        return (await asyncio.wrap_future(await asyncio.shield(run(None, submit))))[0]
    except TooManyMediaError as error:
        raise busy() from error
    except InvalidMediaError as error:
        raise refused(reference.path, reference.modality, error) from error
