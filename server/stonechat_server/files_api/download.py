"""Sends the content of a file, and gives up on a client that does not read it."""

import asyncio
import os

from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send


class Download(FileResponse):
    """The content of a file, as a file to save. The file is never held in memory."""

    def __init__(
        self, path: str, status: os.stat_result, filename: str, write_timeout: float
    ) -> None:
        super().__init__(
            path, media_type="application/octet-stream", filename=filename, stat_result=status
        )
        self._write_timeout = write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._write_timeout):
                await send(message)

        await super().__call__(scope, receive, send_in_time)
