"""Synthetic images for prompts: PNG files of coloured squares, which the seed decides."""

import base64
import random
import struct
import zlib
from collections.abc import Mapping

SQUARE = 16
"""Pixels on a side of a square of one colour."""


def png(width: int, height: int, seed: str) -> bytes:
    """A PNG file of squares in random colours of a random palette."""
    generator = random.Random(seed)
    num_squares = -(-width // SQUARE)
    rows = []
    for top in range(0, height, SQUARE):
        colours = generator.randbytes(num_squares)
        row = b"\0" + b"".join(bytes([colour]) * SQUARE for colour in colours)[:width]
        rows.append(row * min(SQUARE, height - top))
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette, pixels = generator.randbytes(3 * 256), zlib.compress(b"".join(rows), 1)
    chunks = ((b"IHDR", head), (b"PLTE", palette), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def image_part(width: int, height: int, seed: str) -> Mapping[str, object]:
    """The part of a message for such an image."""
    data = base64.b64encode(png(width, height, seed)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
