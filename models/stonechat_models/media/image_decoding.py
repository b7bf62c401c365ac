"""The bytes of an image file to pixels. What the file holds counts, not what it is called."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stonechat_models.media.records import ImageOptions, UnusableMediaError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
LOW_DETAIL_PIXELS = 512
"""The longer side of an image of low detail."""
BACKGROUND = "white"


def decode_image(data: bytes, options: ImageOptions) -> tuple[Image.Image, tuple[int, int]]:
    """Return the image as RGB, and the width and height of the file, turned upright.

    Animations count with their first frame. The orientation of EXIF is applied. What is transparent
    shows white. Samples of 16 bits keep their upper 8. CMYK, greys and palettes become RGB;
    colour profiles are ignored.

    Raises `UnusableMediaError`. The pixels are counted before anything is decoded.
    """
    if not data:
        raise UnusableMediaError("empty", "is empty")
    Image.MAX_IMAGE_PIXELS = None  # the limit is that of the options
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            _check_pixels(file, options.max_pixels)
            file.load()
            upright = ImageOps.exif_transpose(file)
            image = _rgb(upright)
    except UnidentifiedImageError:
        raise UnusableMediaError("format", "is not a PNG, JPEG, WebP or GIF") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError) as error:
        raise UnusableMediaError("broken", f"is broken: {error}"[:300]) from None
    size = image.size
    if options.detail == "low":
        image.thumbnail((LOW_DETAIL_PIXELS, LOW_DETAIL_PIXELS), Image.Resampling.BICUBIC)
    return image, size


def _check_pixels(file: Image.Image, max_pixels: int) -> None:
    if file.width * file.height > max_pixels:
        raise UnusableMediaError(
            "too_large",
            f"has {file.width} x {file.height} pixels, and the limit is {max_pixels} in all",
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # greys of 16 bits
        image = Image.fromarray((np.asarray(image, np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")
