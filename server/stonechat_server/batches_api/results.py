"""The results of a batch, appended as they come: each request is in them at most once.

A kill may tear the last line. It is cut off when the files are opened again, and the request of it
runs again.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from stonechat_server.batches_api.lines import Answered, LineError, output_line

Result = tuple[str, Answered | LineError]
"""The `custom_id` of a request, and what became of it."""
PIECE_BYTES = 2**20


@dataclass(slots=True)
class Counts:
    """Sums over the results so far."""

    num_completed: int = 0
    num_failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, other: "Counts") -> None:
        """Add other sums to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response | None


class _Details(msgspec.Struct):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    usage: _Usage | None = None


class ResultLog:
    """The files of results. Call `open` first and `close` last. Every method may block."""

    def __init__(self, output: Path, errors: Path) -> None:
        """Failed requests go to `errors`, which may be the same file."""
        self.counts = Counts()
        self.done: set[str] = set()
        """The ids of the requests that have a result."""
        self._paths = list(dict.fromkeys((output, errors)))
        self._descriptors: list[int] = []

    def open(self) -> None:
        """Open the files, and read what they have.

        Raises `OSError`, and `ValueError` for a file that is not one of results.
        """
        try:
            for path in self._paths:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
                self._descriptors.append(descriptor)
                self._read(path, descriptor)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def add(self, results: Sequence[Result]) -> None:
        """Append results, and return when they are on the disk. Raises `OSError`.

        After an error, none of them counts, and they may be added again.
        """
        counts, parts = Counts(), [b"", b""]
        for custom_id, result in results:
            line = output_line(custom_id, result)
            _, line_counts = _read_line(line)
            counts.add(line_counts)
            parts[line_counts.num_failed] += line
        files = [self._descriptors[0], self._descriptors[-1]]
        sizes = [os.fstat(file).st_size for file in files]
        try:
            for file, part in zip(files, parts, strict=True):
                if part:
                    _write(file, part)
        except OSError:
            for file, size in zip(files, sizes, strict=True):
                os.ftruncate(file, size)
            raise
        self.counts.add(counts)
        self.done.update(custom_id for custom_id, _ in results)

    def _read(self, path: Path, descriptor: int) -> None:
        size = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    custom_id, counts = _read_line(line)
                except msgspec.DecodeError as error:
                    raise ValueError(f"{path} holds other lines than results") from error
                self.done.add(custom_id)
                self.counts.add(counts)
                size += len(line)
        os.ftruncate(descriptor, size)


def _read_line(line: bytes) -> tuple[str, Counts]:
    decoded = msgspec.json.decode(line, type=_Line)
    response = decoded.response
    if response is None or response.status_code != 200:
        return decoded.custom_id, Counts(num_failed=1)
    usage: Any = msgspec.json.decode(response.body, type=_Body).usage or _Usage()
    inputs = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    outputs = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return decoded.custom_id, Counts(
        num_completed=1,
        input_tokens=usage.prompt_tokens + usage.input_tokens,
        cached_tokens=inputs.cached_tokens,
        output_tokens=usage.completion_tokens + usage.output_tokens,
        reasoning_tokens=outputs.reasoning_tokens,
    )


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)
