"""Sends bytes to a server as they are, and reads what comes back until the server closes."""

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.server.bodies import body


@dataclass
class Answer:
    status: int
    head: str
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    def headers(self, name: str) -> list[str]:
        """All values of a header."""
        lines = (line.partition(": ") for line in self.head.split("\r\n")[1:])
        return [value for key, _, value in lines if key.lower() == name]


def exchange(port: int, pieces: Iterable[bytes]) -> Answer:
    """Send the pieces, each in its own segment, and read to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(60)
        with suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
        return parse(read_all(client))


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    with suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return bytes(received)


def parse(received: bytes) -> Answer:
    head, _, content = received.partition(b"\r\n\r\n")
    return Answer(int(head[9:12] or b"0"), head.decode("latin-1"), content)


def chat(*headers: str, version: str = "1.1", **fields: Any) -> bytes:
    """A chat request whose answer ends with the connection."""
    data = json.dumps(body(**fields)).encode()
    return start(*headers, f"Content-Length: {len(data)}", version=version) + b"\r\n" + data


def start(*headers: str, version: str = "1.1") -> bytes:
    """The beginning of a chat request. An empty line ends its headers."""
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: 127.0.0.1", "Connection: close"]
    return "\r\n".join([*lines, *headers, ""]).encode()


def chunked(*headers: str) -> bytes:
    """The head of a chat request whose body comes in chunks."""
    return start("Transfer-Encoding: chunked", *headers) + b"\r\n"


def chunks(data: bytes, size: int) -> bytes:
    """A body in chunks of that size, without the last one."""
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
