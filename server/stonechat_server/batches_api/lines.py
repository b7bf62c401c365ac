"""The lines of a batch: requests in the input, results in the output. Each is a JSON object."""

import secrets
from codecs import BOM_UTF8
from collections.abc import Collection, Generator
from dataclasses import dataclass
from pathlib import Path

import msgspec

ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
)
"""The endpoints whose requests a batch may have."""
ENVELOPE_BYTES = 16_384
"""What a line may have beside the body of its request."""


class InputLine(msgspec.Struct, frozen=True):
    """A request."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to the request of a line."""

    status: int
    request_id: str
    body: bytes
    """JSON without line breaks."""
    retry_after: float | None = None
    """Seconds after which to try again; None: the answer is final."""


class LineError(msgspec.Struct, frozen=True):
    """Why the request of a line has no answer."""

    code: str
    message: str


EXPIRED = LineError(
    "batch_expired", "This request could not be executed before the completion window expired."
)
CANCELLED = LineError("batch_cancelled", "The batch was cancelled before this request ended.")


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _OutputLine(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: LineError | None


def output_line(custom_id: str, result: Answered | LineError) -> bytes:
    """The line of a result, with its line break."""
    response = error = None
    if isinstance(result, Answered):
        response = _Response(result.status, result.request_id, msgspec.Raw(result.body))
    else:
        error = result
    line = _OutputLine("batch_req_" + secrets.token_hex(12), custom_id, response, error)
    return msgspec.json.encode(line) + b"\n"


def numbered_lines(path: Path, max_bytes: int) -> Generator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1.

    Of a line of more than `max_bytes`, only so many bytes and one more.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(max_bytes + 1):
            number += 1
            rest = line
            if number == 1:  # some editors and shells begin texts with it
                line = line.removeprefix(BOM_UTF8)
            while not rest.endswith(b"\n") and (rest := file.readline(max_bytes + 1)):
                pass
            if line.strip():
                yield number, line


def open_requests(path: Path, done: Collection[str], max_bytes: int) -> Generator[InputLine]:
    """The requests of a checked input that have no result yet."""
    decoder = msgspec.json.Decoder(InputLine)
    for _, line in numbered_lines(path, max_bytes):
        request = decoder.decode(line)
        if request.custom_id not in done:
            yield request
