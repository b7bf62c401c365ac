"""Reads and parses the body of a request. Bounds on its size and shape are checked first."""

import asyncio
import re
from codecs import BOM_UTF8
from contextlib import suppress
from typing import TypeVar

import msgspec
from pydantic import ValidationError
from starlette.requests import Request

from stonechat_server.errors import APIError, from_validation_error
from stonechat_server.schema.base import WireModel
from stonechat_server.settings import Settings

T = TypeVar("T", bound=WireModel)

MAX_DISCARDED_BYTES = 64 * 2**20
"""If a body is too large, at most this much beyond the limit is read."""

COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
"""How bodies in gzip and Zstandard begin. No JSON does."""
PLAIN_ONLY = {"accept-encoding": "identity"}

INTEGERS_PER_VALUE = 8
"""That many integers in a row, such as token ids, count as one value: they are quick to parse."""

LONG_DATA, MAX_CUTS = 4096, 1024
DATA_MARKS = (b";base64,", b'data"', b'url"', b'"images"')
"""Long strings with base64 are passed over, at most so often. They would take most of the time."""
_DATA_START = re.compile(
    rb'(?=;base64,)|(?:data|url)"[ \t\r\n]*+:[ \t\r\n]*+"'
    rb'|"images"[ \t\r\n]*+:[ \t\r\n]*+\[[ \t\r\n]*+"'
)
_NEXT_ITEM = re.compile(rb'"[ \t\r\n]*+,[ \t\r\n]*+"')

_OPEN, _CLOSE, _QUOTE, _BACKSLASH = frozenset(b"[{"), frozenset(b"]}"), ord('"'), ord("\\")
_DIGITS = frozenset(b"0123456789")
# A string is one match, and so are integers in a row. The quantifiers are possessive, and a row
# begins at its first digit, so that nothing is tried again.
_TOKENS = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?|(?<![0-9])[0-9]++(?:[ \t\r\n]*+,[ \t\r\n]*+[0-9]++)++|[\[\]{},]',
    re.DOTALL,
)


def body_limit(settings: Settings) -> int:
    """How many bytes a body may have. Files are a third longer as base64, and do not count."""
    return settings.max_body_size + settings.max_images_size * 4 // 3


async def read_body(request: Request, settings: Settings, limit: int = 0) -> bytes:
    """Read the body. Raises `APIError`: 413 beyond `limit` bytes, 408 after `body_timeout`.

    Without a limit, it is `max_body_size`. A body that is too large is still read and dropped: a
    client cannot read a 413 while it sends.
    """
    limit = limit or settings.max_body_size
    content_length = request.headers.get("content-length", "")
    if content_length.isdigit() and int(content_length) > limit + MAX_DISCARDED_BYTES:
        raise too_large(limit)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for piece in request.stream():
                size += len(piece)
                if size <= limit:
                    pieces.append(piece)
                elif size > limit + MAX_DISCARDED_BYTES:
                    break
                else:
                    pieces.clear()
    except TimeoutError:
        raise APIError(
            408,
            f"The body did not arrive within {settings.body_timeout:g} s.",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None
    if size > limit:
        raise too_large(limit)
    return b"".join(pieces)


async def discard_body(request: Request, settings: Settings, limit: int = 0) -> None:
    """Read a body within the same bounds and drop it, so that the client can read an error."""
    with suppress(APIError):
        await read_body(request, settings, limit)


def too_large(limit: int, what: str = "body") -> APIError:
    """A 413 for a body beyond its limit."""
    return APIError(
        413,
        f"The {what} is larger than {limit} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )


def check_json(body: bytes, settings: Settings) -> None:
    """Raise `APIError` 400 if the JSON is nested too deep or has too many values, and 413 if it is
    larger than `max_body_size` without its images, audio, videos and documents.

    Each would keep the parser busy for a long time, and so delay every stream. The check is
    linear in the length of the body and stops early for a bad one.
    """
    if len(body) > LONG_DATA:
        for mark in DATA_MARKS:
            if mark in body:
                body = _without_data(body, mark)
        max_data = settings.max_images + settings.max_audio_clips
        max_data += settings.max_videos + settings.max_documents
        if len(body) > settings.max_body_size + max_data * LONG_DATA:
            raise too_large(settings.max_body_size)
    max_num_values = sum(map(body.count, (b"[", b"{", b",")))
    if max_num_values <= min(settings.max_json_depth, settings.max_json_values):
        return
    depth = num_values = num_strings = 0
    for match in _TOKENS.finditer(body):
        character = body[match.start()]
        if character == _QUOTE:
            num_strings += 1
            if num_strings > 2 * num_values + 1:
                return  # not valid JSON: the parser will refuse it
            continue
        if character in _CLOSE:
            depth -= 1
            if depth < 0:
                return
            continue
        if character in _DIGITS:
            num_values += 1 + match[0].count(b",") // INTEGERS_PER_VALUE
        else:
            num_values += 1
            depth += character in _OPEN
        if depth > settings.max_json_depth:
            message = (
                f"The JSON is nested deeper than {settings.max_json_depth} levels, the limit that "
                "the server's --max-json-depth sets."
            )
            raise APIError(400, message, code="json_too_deep")
        if num_values > settings.max_json_values:
            message = (
                f"The JSON has more than {settings.max_json_values} values, the limit that the "
                "server's --max-json-values sets."
            )
            raise APIError(400, message, code="json_too_large")


def _without_data(body: bytes, mark: bytes) -> bytes:
    """Cut base64 behind a mark out of strings.

    Where the mark does not begin it, or is outside a string, the body is no JSON: the parser stops.
    """
    pieces, start, place, is_in_list = [], 0, 0, False
    for _ in range(MAX_CUTS):
        found = _NEXT_ITEM.match(body, place) if is_in_list else None
        if found is None:
            place = body.find(mark, place)
            if place < 0:
                break
            if not (found := _DATA_START.match(body, place)):
                is_in_list, place = False, place + len(mark)
                continue
        place, end = found.end(), body.find(b'"', found.end())
        if end < 0:
            break
        is_whole = body[end - 1] != _BACKSLASH  # the quote ends the string
        if end - place > LONG_DATA and is_whole:
            pieces.append(body[start:place])
            start = end
        is_in_list, place = is_whole and mark == DATA_MARKS[-1], end
    return b"".join([*pieces, body[start:]])


async def read_request(request: Request, settings: Settings, kind: type[T]) -> T:
    """Read, check and parse the body of a request. Raises `APIError`: 400, 408 or 413."""
    body = await read_body(request, settings)
    check_json(body, settings)
    return parse_request(body, kind)


def parse_request(body: bytes, kind: type[T]) -> T:
    """Parse a body as a request of this kind. Raises `APIError` 400 unless it is valid."""
    body = body.removeprefix(BOM_UTF8)  # some editors and shells begin texts with it
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error, body) from error


def _explain(error: ValidationError, body: bytes) -> APIError:
    if body.startswith(COMPRESSED):
        message = "The body is compressed. Send it as it is, without Content-Encoding."
        return APIError(415, message, code="unsupported_encoding", headers=PLAIN_ONLY)
    try:
        return from_validation_error(error, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return APIError(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
