"""Fetches images, audio and videos by `https`, with bounds on size, time, redirects and number."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from stonechat_server.media.addresses import Resolver
from stonechat_server.media.allowed_urls import SCHEME, AllowedUrls, FileUrl
from stonechat_server.media.errors import FetchError, UrlError

if TYPE_CHECKING:
    from stonechat_server.media.https import Client

MAX_REDIRECTS = 3
MAX_FETCHES = 16
"""Fetches that run at the same time, of all requests."""
NO_CLIENT = "cannot be fetched: on the server, pip install 'stonechat[vision]' is missing"


class Fetcher:
    """Fetches files of the URLs that `patterns` allow. `client`: by default one of this machine.

    Each redirect is checked as the first URL is.
    """

    def __init__(
        self, patterns: Sequence[str], *, timeout: float, client: "Client | None" = None
    ) -> None:
        self._allowed = AllowedUrls(patterns)
        self._timeout = timeout
        self._client = client
        self._resolver: Resolver | None = None
        self._turns = asyncio.Semaphore(MAX_FETCHES)

    def check(self, url: str) -> None:
        """Raise `UrlError` for a URL that is not allowed."""
        self._allowed.check(url)

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """The bytes at a URL. Raises `MediaError`."""
        wanted = self._allowed.check(url)
        client = self._client = self._client or self._new_client()
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                for _ in range(MAX_REDIRECTS + 1):
                    answer = await client.get(wanted, max_bytes)
                    if isinstance(answer, bytes):
                        return answer
                    url = _joined(url, answer)
                    wanted = self._redirected(url)
        except TimeoutError:
            raise FetchError(f"did not arrive within {self._timeout:g} s") from None
        raise FetchError(f"is behind more than {MAX_REDIRECTS} redirects")

    def _redirected(self, url: str) -> FileUrl:
        if url[: len(SCHEME)].lower() != SCHEME:
            raise UrlError("redirects to one that is not https://")
        try:
            return self._allowed.check(url)
        except UrlError as error:
            raise UrlError(f"redirects to one that {error}") from error

    def _new_client(self) -> "Client":
        try:
            from stonechat_server.media.https import Client
        except ImportError as error:
            raise FetchError(NO_CLIENT) from error
        self._resolver = Resolver()
        return Client(self._resolver)

    def close(self) -> None:
        """Fetch no more."""
        if self._resolver is not None:
            self._resolver.close()


def _joined(url: str, location: str) -> str:
    """The URL that a redirect leads to. One that cannot be read is refused like any other."""
    try:
        return urljoin(url, location)
    except ValueError:
        return location
