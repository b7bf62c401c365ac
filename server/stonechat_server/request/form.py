"""A form with one file in it (`multipart/form-data`, RFC 7578), read as it arrives.

The file goes to a sink, and is never held in memory. All else is bounded.
"""

from collections.abc import Callable
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from stonechat_server.errors import APIError, invalid

MAX_PARTS = 32
MAX_FIELD_BYTES = 1_024
MAX_FILENAME_LENGTH = 255
FILE = "file"
LIST = "[]"
"""The end of the name of a list, which has a part for each item."""


class Sink(Protocol):
    """Takes the content of the file."""

    def write(self, data: bytes, /) -> object: ...


class UploadForm:
    """Give each piece of a body to `feed`, then call `finish`. The file goes to `sink`.

    Both raise `APIError`: 400 for a form that is not well made, and what `too_large` makes for a
    file of more than `max_bytes`.
    """

    def __init__(
        self,
        content_type: str,
        sink: Sink,
        max_bytes: int,
        too_large: Callable[[int], APIError],
        max_field_bytes: int = MAX_FIELD_BYTES,
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            message = "The body must be a form with a file (multipart/form-data)."
            raise APIError(400, message, code="invalid_form")
        self.fields: dict[str, str] = {}
        self.lists: dict[str, list[str]] = {}
        """The items of each list, by its name without `LIST`."""
        self.filename: str | None = None
        self.num_bytes = 0
        self._sink, self._max_bytes, self._too_large = sink, max_bytes, too_large
        self._max_field_bytes = max_field_bytes
        self._is_complete = False
        self._num_parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header_name = self._header_value = b""
        self._name = ""
        self._value = b""
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, data: bytes) -> None:
        """Read the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> None:
        """Check that the form and its file are there and complete."""
        if not self._is_complete:
            raise APIError(400, "The form ends too early.", code="invalid_form")
        if self.filename is None:
            message = "Missing required parameter: 'file', a part of the form with a filename."
            raise invalid(FILE, message, "missing_required_parameter")

    def _begin_part(self) -> None:
        self._headers, self._value = {}, b""
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            message = f"The form has more than {MAX_PARTS} parts."
            raise APIError(400, message, code="invalid_form")

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        is_again = self._name.removesuffix(LIST) in self.fields or self._name in self.lists
        if is_again or (self._name == FILE and self.filename is not None):
            raise invalid(self._name, f"The form has the field '{self._name}' twice.")
        if self._name == FILE:
            name = options.get(b"filename", b"").decode("utf-8", "replace").replace("\0", "")
            name = name.replace("\\", "/").rpartition("/")[2]
            if not name:
                raise invalid(FILE, "The part 'file' of the form must have a filename.")
            self.filename = name[:MAX_FILENAME_LENGTH]

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == FILE:
            self.num_bytes += end - start
            if self.num_bytes > self._max_bytes:
                raise self._too_large(self._max_bytes)
            self._sink.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > self._max_field_bytes:
            name = self._name[:MAX_FIELD_BYTES]
            raise invalid(name, f"The field has more than {self._max_field_bytes} bytes.")

    def _end_part(self) -> None:
        if self._name == FILE:
            return
        name, value = self._name[:MAX_FIELD_BYTES], self._value.decode("utf-8", "replace")
        if name.endswith(LIST):
            self.lists.setdefault(name.removesuffix(LIST), []).append(value)
        else:
            self.fields[name] = value

    def _end(self) -> None:
        self._is_complete = True


def _malformed(error: FormParserError) -> APIError:
    return APIError(400, f"The form is not well made: {error}.", code="invalid_form")
