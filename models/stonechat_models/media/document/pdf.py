"""The bytes of a PDF file to the texts of its pages, and to images of them.

PDFium opens nothing but these bytes. Its build in pypdfium2 has neither V8 nor XFA, so no script of
a file runs.
"""

import io
import re
from typing import TYPE_CHECKING

from stonechat_models.media.records import Document, DocumentOptions, Page, UnusableMediaError

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

LARGEST_SCALE = 4.0
"""Pixels of a point at most: 288 an inch."""
MAX_SIDE = 8192
"""Pixels of the longer side of an image at most."""
JPEG_QUALITY = 90
NEEDS_PASSWORD = 4
"""PDFium's number for a file that asks for a password."""
_BREAK = re.compile("[ \t]*\r?\n")
_BLANK_LINES = re.compile("\n{3,}")
_OTHER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
"""Control characters but tabs and newlines, and what is no character."""


def read_pdf(data: bytes, options: DocumentOptions) -> Document:
    """Read a document. Raises `UnusableMediaError`."""
    from pypdfium2 import PdfDocument, PdfiumError

    try:
        file = PdfDocument(data)
        if file.get_formtype():
            file.init_forms()  # before any page is loaded
        return _read(file, options)
    except PdfiumError as error:
        if error.err_code == NEEDS_PASSWORD:
            raise UnusableMediaError("encrypted", "is encrypted with a password") from None
        raise UnusableMediaError("broken", f"is broken: {error}"[:300].rstrip(".")) from None


def _read(file: "PdfDocument", options: DocumentOptions) -> Document:
    num_pages = len(file)
    if not num_pages:
        raise UnusableMediaError("broken", "has no pages")
    if num_pages > options.max_pages:
        raise UnusableMediaError(
            "too_many_pages", f"has {num_pages} pages, and at most {options.max_pages} are read"
        )
    pages: list[Page] = []
    num_characters = num_images = 0
    for number in range(num_pages):
        page = _loaded(file, number)
        text = _text(page, num_characters, options.max_characters)
        num_characters += len(text)
        image = b""
        if _becomes_image(page, text, options):
            num_images += 1
            if num_images > options.max_images:
                raise _too_many_images(options.max_images)
            image = _image(page, options.max_pixels)
        page.close()
        pages.append(Page(text, image))
    return Document(tuple(pages))


def _loaded(file: "PdfDocument", number: int) -> "PdfPage":
    """Return a page. The values of a form's fields are part of what is on it."""
    page = file[number]
    if page.formenv is None:
        return page
    page.flatten()
    page.close()
    return file[number]


def _text(page: "PdfPage", num_before: int, most: int) -> str:
    """Return the text of a page, in the order of the file, as far as it is within the page."""
    textpage = page.get_textpage()
    if num_before + textpage.count_chars() > most:
        reason = f"has more than {most} characters"
        raise UnusableMediaError("too_many_characters", reason)
    text = textpage.get_text_bounded()
    textpage.close()
    text = text.replace("\x02", "-\n")  # a hyphen at the end of a line
    return _BLANK_LINES.sub("\n\n", _OTHER.sub("", _BREAK.sub("\n", text))).strip()


def _becomes_image(page: "PdfPage", text: str, options: DocumentOptions) -> bool:
    from pypdfium2.raw import FPDFPage_CountObjects

    is_wanted = options.images == "all" or (options.images == "missing" and not text)
    return is_wanted and FPDFPage_CountObjects(page) > 0


def _image(page: "PdfPage", max_pixels: int) -> bytes:
    """Return a page as a JPEG file.

    PDFium rounds its sides up, so the scale is that of (width + 1) * (height + 1) pixels.
    """
    width, height = (max(side, 1.0) for side in page.get_size())
    area, border = width * height, width + height
    by_area = ((border**2 + 4 * area * (max_pixels - 1)) ** 0.5 - border) / (2 * area)
    scale = min(LARGEST_SCALE, by_area, MAX_SIDE / max(width, height))
    file = io.BytesIO()
    image = page.render(scale=scale).to_pil().convert("RGB")
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _too_many_images(limit: int) -> UnusableMediaError:
    return UnusableMediaError(
        "too_many_images", f"has more than {limit} pages that would become images"
    )
