"""One `GET` by `https`, to an address that was checked. Needs `httpcore2`, of the extra `vision`.

Nothing of this machine's surroundings is used: no proxy of the environment, no cookies and no
credentials.
"""

import asyncio
import re
import ssl
from typing import Any

import httpcore2

from stonechat_models import __version__
from stonechat_server.media.addresses import AddressError, Resolve, check_addresses
from stonechat_server.media.allowed_urls import FileUrl
from stonechat_server.media.errors import FetchError, too_large

REDIRECTS = frozenset({301, 302, 303, 307, 308})
HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "image/png, image/jpeg, image/webp, image/gif, audio/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": f"stonechat/{__version__}",
}
_NUMBER = re.compile(rb"[0-9]{1,18}")


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the address that was checked, not to a name that is resolved once more.

    TLS still names and verifies the host. `inner` opens the connections.
    """

    def __init__(self, resolve: Resolve, inner: httpcore2.AsyncNetworkBackend) -> None:
        self._resolve, self._inner = resolve, inner

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore2.AsyncNetworkStream:
        """Try the addresses in their order. Raises `AddressError`, `OSError` or `ConnectError`."""
        addresses = check_addresses(await self._resolve(host, port))
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, *args, **options)
            except (OSError, httpcore2.NetworkError):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, *args, **options)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Client:
    """Gets files. `inner` opens the connections: by default TCP ones of this machine."""

    def __init__(
        self, resolve: Resolve, inner: httpcore2.AsyncNetworkBackend | None = None
    ) -> None:
        self._backend = CheckedBackend(resolve, inner or httpcore2.AnyIOBackend())
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: FileUrl, max_bytes: int) -> bytes | str:
        """The bytes at a URL, or the URL that it redirects to. Raises `FetchError`."""
        if self._tls is None:  # it reads the system's certificates
            self._tls = await asyncio.to_thread(httpcore2.default_ssl_context)
        address = httpcore2.URL(scheme="https", host=url.host, port=url.port, target=url.target)
        connection = httpcore2.AsyncHTTPConnection(
            address.origin, ssl_context=self._tls, network_backend=self._backend
        )
        try:
            async with connection, connection.stream("GET", address, headers=HEADERS) as response:
                return await _read(response, max_bytes)
        except AddressError as error:
            raise FetchError(f"is not fetched: {error}") from error
        except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            raise FetchError(f"could not be fetched from {url.host}") from error


async def _read(response: httpcore2.Response, max_bytes: int) -> bytes | str:
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in REDIRECTS:
        return headers.get(b"location", b"").decode("latin-1")
    if response.status != 200:
        raise FetchError(f"could not be fetched: its host answered {response.status}")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise FetchError("could not be fetched: its host compressed the answer")
    length = headers.get(b"content-length", b"")
    if _NUMBER.fullmatch(length) and int(length) > max_bytes:
        raise too_large(max_bytes)
    content = bytearray()
    async for piece in response.aiter_stream():
        content += piece
        if len(content) > max_bytes:
            raise too_large(max_bytes)
    return bytes(content)
