"""The images of benchmarks and checks, as Pillow reads them."""

import base64
import io

import pytest
from PIL import Image

from stonechat_server.client.synthetic_images import black_png, image_part, png


@pytest.mark.parametrize(("width", "height"), [(1, 1), (16, 16), (50, 33), (640, 480)])
def test_a_synthetic_image_is_a_png_of_its_size(width: int, height: int) -> None:
    image = Image.open(io.BytesIO(png(width, height, "a")))
    image.load()  # checks the sums of its chunks
    assert (image.format, image.size) == ("PNG", (width, height))
    pixels = image.convert("RGB")
    assert len(set(pixels.get_flattened_data())) > 1 or width * height <= 256
    assert pixels.getpixel((0, 0)) == pixels.getpixel((min(15, width - 1), min(15, height - 1)))


def test_the_seed_decides_an_image() -> None:
    assert png(64, 64, "a") == png(64, 64, "a")
    assert png(64, 64, "a") != png(64, 64, "b")


def test_a_black_square_is_small_and_whole() -> None:
    image = Image.open(io.BytesIO(black_png(1000)))
    image.load()
    assert (image.size, image.getextrema()) == ((1000, 1000), (0, 0))
    assert len(black_png(1000)) < 1000


def test_the_part_of_an_image_has_its_file() -> None:
    part = image_part(b"file", detail="low")
    assert part == {
        "type": "image_url",
        "image_url": {
            "url": f"data:image/png;base64,{base64.b64encode(b'file').decode()}",
            "detail": "low",
        },
    }
