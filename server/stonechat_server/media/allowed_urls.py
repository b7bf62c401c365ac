"""Which URLs of files the server may fetch: `https` ones of the hosts that its patterns name.

A URL is refused unless it is written in the plainest way: what two programs could read in two ways
may lead elsewhere than its check has seen.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from stonechat_server.media.data_urls import EXAMPLE
from stonechat_server.media.errors import UrlError

SCHEME = "https://"
HTTPS_PORT = 443
MAX_URL_LENGTH = 8_192
_PLAIN = re.compile(r"[!-~]+")
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""Labels of letters, digits and hyphens. The last begins with a letter: else it is an address, also
in decimal (`2130706433`), octal (`0177.0.0.1`) or hexadecimal (`0x7f.1`) form."""
_PORT = re.compile(r"[0-9]{1,5}")
ALL = "*"


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A URL that is checked: `https://HOST:PORT` and the path with its query."""

    host: str
    port: int
    target: str


def read_url(url: str) -> FileUrl:
    """Read the URL of a file. Raises `UrlError`."""
    if not url:
        raise UrlError("is empty: it must begin with data: or https://")
    if url[: len(SCHEME)].lower() != SCHEME:
        raise UrlError(f"must begin with data: or https:// (base64: {EXAMPLE})")
    if len(url) > MAX_URL_LENGTH:
        raise UrlError(f"has more than {MAX_URL_LENGTH} characters")
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise UrlError("has a character that a URL must write as %XX (a host: as xn--...)")
    rest = url[len(SCHEME) :]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise UrlError("has a user name or password")
    name, _, port_text = authority.partition(":")
    host = name.lower()
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise UrlError("does not name a host (addresses in numbers are not fetched)")
    if ":" in authority and not (_PORT.fullmatch(port_text) and 0 < int(port_text) < 65_536):
        raise UrlError("has a port that is no number from 1 to 65535")
    parts = urlsplit("//" + rest)
    query = f"?{parts.query}" if parts.query else ""
    return FileUrl(host, int(port_text or HTTPS_PORT), (parts.path or "/") + query)


class AllowedUrls:
    """The patterns of `--allow-image-urls`.

    `images.example.com` is that host, `*.example.com` all names below it, `*` any host. A pattern
    may end with a port, as `images.example.com:8443`; without one it is for port 443.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [_read_pattern(pattern) for pattern in patterns]

    @property
    def is_empty(self) -> bool:
        """Whether no URL is fetched at all."""
        return not self._patterns

    def check(self, url: str) -> FileUrl:
        """Read a URL that a pattern allows. Raises `UrlError`."""
        wanted = read_url(url)
        if self.is_empty:
            raise UrlError(
                "would have to be fetched, and this server fetches none (its operator can allow "
                "hosts with --allow-image-urls): send the file as a data: URL"
            )
        if not any(_matches(wanted, host, port) for host, port in self._patterns):
            where = wanted.host if wanted.port == HTTPS_PORT else f"{wanted.host}:{wanted.port}"
            raise UrlError(f"is of {where}, which the server's --allow-image-urls does not name")
        return wanted


def _read_pattern(pattern: str) -> tuple[str, int]:
    host, _, port = pattern.lower().partition(":")
    return host, int(port or HTTPS_PORT)


def _matches(url: FileUrl, host: str, port: int) -> bool:
    if url.port != port:
        return False
    return host in (ALL, url.host) or (host[:2] == "*." and url.host.endswith(host[1:]))
