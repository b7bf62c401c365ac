"""Fetches, over a network that is scripted: names and connections of this machine are not used."""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpcore2
import pytest

from stonechat_server.media.errors import FetchError, MediaError, UrlError
from stonechat_server.media.fetch import Fetcher
from stonechat_server.media.https import Client

URL = "https://a.example/x.png?q=1"
NAMES = {
    "a.example": ["8.8.8.8", "2606:4700::1"],
    "b.example": ["9.9.9.9"],
    "inside.example": ["8.8.8.8", "10.0.0.1"],
    "meta.example": ["169.254.169.254"],
}
OK = b"HTTP/1.1 200 OK\r\n"


@dataclass
class Stream(httpcore2.AsyncNetworkStream):
    """A connection whose answer is scripted."""

    net: "Network"
    address: tuple[str, int]
    answer: list[bytes]

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.net.hangs:
            await asyncio.Event().wait()
        piece = self.answer.pop(0) if self.answer else b""
        self.net.num_read += len(piece)
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.net.sent += buffer

    async def aclose(self) -> None:
        self.net.num_closed += 1

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> "Stream":
        assert ssl_context.verify_mode is ssl.CERT_REQUIRED
        assert ssl_context.check_hostname
        self.net.tls_names.append(server_hostname)
        return self

    def get_extra_info(self, info: str) -> Any:
        return None


@dataclass
class Network(httpcore2.AsyncNetworkBackend):
    """Resolves names and opens connections. `answers` are used up in order."""

    answers: list[bytes] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=lambda: dict(NAMES))
    down: frozenset[str] = frozenset()
    hangs: bool = False
    opened: list[tuple[str, int]] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    tls_names: list[str | None] = field(default_factory=list)
    sent: bytes = b""
    num_read: int = 0
    num_closed: int = 0

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.resolved.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> Stream:
        self.opened.append((host, port))
        if host in self.down:
            raise httpcore2.ConnectError
        answer = self.answers.pop(0)
        pieces = [answer[i : i + 50] for i in range(0, len(answer), 50)]
        return Stream(self, (host, port), pieces)


def fetch(net: Network, url: str = URL, patterns: Sequence[str] = ("*",), **options: Any) -> bytes:
    values: dict[str, Any] = {"timeout": 60.0} | options
    fetcher = Fetcher(patterns, client=Client(net.resolve, net), **values)
    return asyncio.run(fetcher.fetch(url, 1000))


def redirect(url: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def answer(content: bytes, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return OK + lines.encode() + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_the_connection_goes_to_the_checked_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    net = Network([answer(b"image", "Set-Cookie: a=b")])
    assert fetch(net) == b"image"
    assert net.opened == [("8.8.8.8", 443)]
    assert net.resolved == ["a.example"]  # once: no second answer can lead elsewhere
    assert net.tls_names == ["a.example"]
    lines = net.sent.decode().split("\r\n")
    assert lines[0] == "GET /x.png?q=1 HTTP/1.1"
    names = {line.partition(":")[0].lower() for line in lines[1:] if line}
    assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert "Host: a.example" in lines
    assert net.num_closed


def test_the_next_address_is_tried() -> None:
    net = Network([answer(b"image")], down=frozenset({"8.8.8.8"}))
    assert fetch(net) == b"image"
    assert net.opened == [("8.8.8.8", 443), ("2606:4700::1", 443)]


@pytest.mark.parametrize("host", ["inside.example", "meta.example"])
def test_a_name_with_an_inner_address_is_not_connected_to(host: str) -> None:
    net = Network()
    with pytest.raises(FetchError, match="not public"):
        fetch(net, f"https://{host}/x")
    assert net.opened == []


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(FetchError, match=r"could not be fetched from c\.example"):
        fetch(Network(), "https://c.example/")


def test_redirects_are_followed_and_checked_anew() -> None:
    net = Network([redirect("https://b.example/y"), redirect("../z", 308), answer(b"image")])
    assert fetch(net, patterns=["a.example", "b.example"]) == b"image"
    assert net.resolved == ["a.example", "b.example", "b.example"]
    assert b"GET /z HTTP/1.1\r\nHost: b.example" in net.sent


@pytest.mark.parametrize(
    "to",
    [
        "https://c.example/",  # a host that no pattern names
        "https://a.example:22/",
        "http://a.example/",
        "//10.0.0.1/",
        "https://127.0.0.1/",
        "https://user@b.example/",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
        "https://[::1/",
        "//[",
        "",
    ],
)
def test_redirects_to_elsewhere_are_refused(to: str) -> None:
    net = Network([redirect(to)] * 5)
    with pytest.raises(MediaError) as error_info:
        fetch(net, patterns=["a.example", "b.example"])
    assert isinstance(error_info.value, UrlError) or to == ""
    assert str(error_info.value).startswith("redirects to one that ") or to == ""
    assert set(net.resolved) == {"a.example"}


def test_a_redirect_to_an_inner_address_is_refused() -> None:
    net = Network([redirect("https://inside.example/")])
    with pytest.raises(FetchError, match="not public"):
        fetch(net)
    assert len(net.opened) == 1


def test_redirects_end() -> None:
    net = Network([redirect(URL)] * 9)
    with pytest.raises(FetchError, match="more than 3 redirects"):
        fetch(net)
    assert len(net.opened) == 4


def test_a_large_answer_is_refused_before_it_is_read() -> None:
    net = Network([answer(b"x" * 5000)])
    with pytest.raises(MediaError, match=r"has more than 1\.0 kB"):
        fetch(net)
    assert net.num_read < 200


def test_an_answer_of_unknown_length_is_read_up_to_the_bound() -> None:
    chunk = b"40\r\n" + b"x" * 64 + b"\r\n"
    net = Network([OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 1000])
    with pytest.raises(MediaError, match=r"has more than 1\.0 kB"):
        fetch(net)
    assert net.num_read < 2000


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (answer(b"x", "Content-Encoding: gzip"), "compressed"),
        (b"SSH-2.0-OpenSSH\r\n", "could not be fetched from"),
        (b"", "could not be fetched from"),
        (OK + b"Content-Length: 100\r\n\r\nabc", "could not be fetched from"),
    ],
)
def test_other_answers(reply: bytes, reason: str) -> None:
    with pytest.raises(FetchError, match=reason):
        fetch(Network([reply]))


def test_time_is_bounded() -> None:
    net = Network([b""], hangs=True)
    with pytest.raises(FetchError, match=r"did not arrive within 0\.01 s"):
        fetch(net, timeout=0.01)
    assert net.num_closed == len(net.opened)


def test_what_is_not_allowed_is_not_resolved() -> None:
    net = Network()
    with pytest.raises(UrlError):
        fetch(net, patterns=["b.example"])
    assert net.resolved == []
