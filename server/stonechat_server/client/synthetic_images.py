"""Synthetic images for prompts, as PNG files."""

import base64
import random
import struct
import zlib
from collections.abc import Mapping

SQUARE = 16
"""Pixels on a side of a square of one colour."""


def png(width: int, height: int, seed: str) -> bytes:
    """A PNG file of squares in colours that the seed decides."""
    generator = random.Random(seed)
    num_squares = -(-width // SQUARE)
    rows = []
    for top in range(0, height, SQUARE):
        colours = generator.randbytes(num_squares)
        row = b"\0" + b"".join(bytes([colour]) * SQUARE for colour in colours)[:width]
        rows.append(row * min(SQUARE, height - top))
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette, pixels = generator.randbytes(3 * 256), zlib.compress(b"".join(rows), 1)
    return _file((b"IHDR", head), (b"PLTE", palette), (b"IDAT", pixels))


def _file(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [_chunk(kind, data) for kind, data in (*chunks, (b"IEND", b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def black_png(side: int) -> bytes:
    """A small PNG file of a black square, which may have very many pixels."""
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    compress, row = zlib.compressobj(1), bytes(1 + (side + 7) // 8)
    pixels = b"".join([*(compress.compress(row) for _ in range(side)), compress.flush()])
    return _file((b"IHDR", head), (b"IDAT", pixels))


def image_part(png_file: bytes, **fields: object) -> Mapping[str, object]:
    """The part of a message for a PNG file. `fields` stand beside its URL."""
    url = f"data:image/png;base64,{base64.b64encode(png_file).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **fields}}
