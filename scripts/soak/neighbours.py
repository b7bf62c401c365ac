"""The clients of `attacks.py` that must not notice the attack."""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

URL = "/v1/chat/completions"


def chat(**fields: Any) -> bytes:
    """The body of a chat request with further fields."""
    messages = [{"role": "user", "content": "Tell me about the house near the hill."}]
    return json.dumps({"model": "soak", "messages": messages, **fields}).encode()


@dataclass
class Neighbour:
    """A client that streams all the time, in a thread. Notes when each chunk came."""

    port: int
    key: str
    problems: list[str] = field(default_factory=list)
    gaps: list[tuple[float, float]] = field(default_factory=list)
    """The time of each chunk but the first of its stream, and the seconds before it."""
    is_ending: bool = False

    def start(self) -> None:
        """Begin to stream. Returns when the first stream has begun."""
        threading.Thread(target=self._stream_forever, daemon=True).start()
        while not self.gaps and not self.problems:
            time.sleep(0.01)

    def _stream_forever(self) -> None:
        try:
            while not self.is_ending:
                self._stream()
        except (OSError, HTTPException) as error:
            if not self.is_ending:
                self.problems.append(f"the neighbour's stream broke: {error!r}")

    def _stream(self) -> None:
        fields = {"stream": True, "max_tokens": 1000, "ignore_eos": True}
        connection, last = open_request(self.port, self.key, **fields), 0.0
        for line in connection.getresponse():
            if line.startswith(b"data:"):
                now = time.monotonic()
                if last:
                    self.gaps.append((now, now - last))
                last = now
            if self.is_ending:
                break
        connection.close()

    def longest_gap(self, since: float) -> float:
        """The longest gap in milliseconds that ended after `since`, or has not ended yet."""
        open_gap = time.monotonic() - self.gaps[-1][0]
        return 1000 * max([open_gap, *(gap for end, gap in self.gaps if end >= since)])


def open_request(port: int, key: str, **fields: Any) -> HTTPConnection:
    """Send a chat request on a new connection."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", URL, chat(**fields), {"Authorization": f"Bearer {key}"})
    return connection


@dataclass
class JsonClient:
    """Asks for a JSON object, in a thread."""

    port: int
    key: str
    status: str = ""

    def start(self) -> threading.Thread:
        """Ask once more. The thread ends with the answer, or after its timeout without one."""
        thread = threading.Thread(target=self._ask, daemon=True)
        thread.start()
        return thread

    def _ask(self) -> None:
        self.status = "no answer"
        fields = {"response_format": {"type": "json_object"}, "max_tokens": 8}
        with suppress(OSError, HTTPException):
            self.status = str(open_request(self.port, self.key, **fields).getresponse().status)
