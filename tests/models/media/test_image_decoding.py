"""The bytes of image files become RGB, or an error that says what is wrong with them."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stonechat_models.media.image_decoding import UnusableMediaError, decode_image
from stonechat_models.media.records import ImageOptions

AUTO = ImageOptions()
COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]]], np.uint8)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes, options: ImageOptions = AUTO) -> Any:
    image, _ = decode_image(data, options)
    assert image.mode == "RGB"
    return np.asarray(image)


def problem(data: bytes, options: ImageOptions = AUTO) -> tuple[str, str]:
    with pytest.raises(UnusableMediaError) as caught:
        decode_image(data, options)
    return caught.value.kind, caught.value.reason


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of greys, written from the format's specification."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_each_lossless_format_keeps_its_pixels(kind: str) -> None:
    data = encoded(Image.fromarray(COLORS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert (pixels(data) == COLORS).all()


def test_jpeg() -> None:
    data = encoded(Image.new("RGB", (40, 30), (10, 200, 90)), "JPEG", quality=95)
    assert abs(pixels(data).astype(int) - (10, 200, 90)).max() <= 3


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


def test_exif_turns_the_image_upright() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was turned: rotate by 90 degrees clockwise
    data = encoded(Image.fromarray(np.repeat(COLORS, 2, axis=1)), "PNG", exif=exif)
    image, size = decode_image(data, AUTO)
    assert size == (2, 4)
    assert (np.asarray(image) == np.rot90(np.repeat(COLORS, 2, axis=1), -1)).all()


def half_transparent() -> Image.Image:
    return Image.fromarray(np.array([[[255, 0, 0, 255], [0, 0, 0, 0]]], np.uint8), "RGBA")


def palette() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 9, 9, 9])
    image.putdata([0, 1])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize("make", [half_transparent, palette])
def test_what_is_transparent_is_white(make: Callable[[], Image.Image]) -> None:
    assert pixels(encoded(make(), "PNG")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_samples_of_16_bits_keep_their_upper_8() -> None:
    greys = np.array([[0x0000, 0x12FF, 0xFFFF]], np.uint16)
    expected = np.repeat((greys >> 8).astype(np.uint8)[..., None], 3, axis=2)
    assert (pixels(encoded(Image.fromarray(greys), "PNG")) == expected).all()


def test_cmyk_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    assert abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 4


def test_low_detail_scales_down_only() -> None:
    low = ImageOptions(detail="low")
    large, size = decode_image(encoded(Image.new("RGB", (2000, 1000)), "PNG"), low)
    assert (large.size, size) == ((512, 256), (2000, 1000))
    small, _ = decode_image(encoded(Image.new("RGB", (100, 50)), "PNG"), low)
    assert small.size == (100, 50)


def test_what_is_no_image_of_the_four_formats() -> None:
    other = ("format", "is not a PNG, JPEG, WebP or GIF")
    assert problem(b"") == ("empty", "is empty")
    assert problem(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == other
    for kind in ("BMP", "TIFF", "PPM"):
        assert problem(encoded(Image.fromarray(COLORS), kind)) == other


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_that_ends_early_is_broken(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for end in range(1, len(data) - 16, len(data) // 23):
        assert problem(data[:end])[0] in ("broken", "format")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png(40_000, 40_000, (b"IDAT", zlib.compress(b"\0" * 1000)))
    kind, reason = problem(bomb)
    assert (kind, reason) == (
        "too_large",
        "has 40000 x 40000 pixels, and the limit is 50000000 in all",
    )
    assert problem(bomb, ImageOptions(max_pixels=2_000_000_000))[0] == "broken"


def test_a_bomb_of_text_is_broken() -> None:
    pixel = (b"IDAT", zlib.compress(b"\0\7"))
    assert pixels(png(1, 1, pixel)).tolist() == [[[7, 7, 7]]]
    text = (b"zTXt", b"comment\0\0" + zlib.compress(b"a" * (80 << 20)))
    assert problem(png(1, 1, text, pixel))[0] == "broken"
