"""Small PDF files, written by hand after ISO 32000-1."""

import zlib
from collections.abc import Sequence

CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
RED_SQUARE = b"1 0 0 rg 0 0 612 792 re f"
"""A page that is red all over, without text: like a scan."""


def pdf(*pages: str | bytes, size: tuple[int, int] = (612, 792)) -> bytes:
    """A file with these pages: lines of text, or what PDF calls a content stream."""
    numbers = range(4, 4 + 2 * len(pages), 2)
    kids = b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [CATALOG, b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)), FONT]
    for number, page in zip(numbers, pages, strict=True):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (*size, number + 1)
        )
        objects.append(stream(page if isinstance(page, bytes) else written(page)))
    return file_of(objects)


def written(text: str) -> bytes:
    """A content stream that writes lines."""
    lines = [line.encode("cp1252").hex().encode() for line in text.split("\n")]
    return b"BT /F1 12 Tf 72 700 Td 14 TL " + b" ".join(b"<%s> Tj T*" % i for i in lines) + b" ET"


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """An object with data."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(data), entries, data)


def file_of(objects: Sequence[bytes], trailer: bytes = b"") -> bytes:
    """A file of objects, the first of which is the catalog."""
    content = b"%PDF-1.7\n"
    offsets = []
    for number, one in enumerate(objects, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    entries = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        content
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, entries)
        + b"trailer << /Size %d /Root 1 0 R %s >>\n" % (len(objects) + 1, trailer)
        + b"startxref\n%d\n%%%%EOF\n" % len(content)
    )


def one_page(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A file with one page whose further objects, from number 4 on, are these; 4 is its content."""
    page = (
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /XObject << /A 5 0 R >> >> >>"
    )
    pages = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return file_of([CATALOG, pages, page, *objects], trailer)


def filled_form(value: str) -> bytes:
    """A page whose only text is the value of a field."""
    catalog = b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [5 0 R] >> >>"
    pages = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Annots [5 0 R] >>"
    look = b"<< /Font << /F1 4 0 R >> >>"
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (name) /V (%s) /Rect [72 700 300 720] /F 4 "
        b"/AP << /N 6 0 R >> >>" % value.encode()
    )
    shown = b"BT /F1 12 Tf 2 5 Td (%s) Tj ET" % value.encode()
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 228 20] /Resources " + look
    return file_of([catalog, pages, page, FONT, field, stream(shown, entries)])


def encrypted() -> bytes:
    """A file that asks for a password."""
    keys = b"/O <%s> /U <%s>" % (b"28" * 32, b"11" * 32)
    lock = b"<< /Filter /Standard /V 1 /R 2 %s /P -44 >>" % keys
    trailer = b"/Encrypt 5 0 R /ID [<00> <00>]"
    return one_page(stream(b""), lock, trailer=trailer)


def inflated(num_bytes: int) -> bytes:
    """A few bytes whose page's content becomes so many: they are compressed twice."""
    packer = zlib.compressobj(9)
    piece = b" " * 2**20
    data = b"".join(packer.compress(piece) for _ in range(num_bytes // len(piece)))
    data = zlib.compress(data + packer.flush(), 9)
    return one_page(stream(data, b"/Filter [/FlateDecode /FlateDecode]"))


def laughing(depth: int) -> bytes:
    """A page that draws a form of ten forms of ten forms, and so on."""
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 612 792] /Resources << /XObject << "
    forms = [
        stream(b"/A Do " * 10, entries + b"/A %d 0 R >> >>" % (6 + i)) for i in range(depth - 1)
    ]
    last = b"/Type /XObject /Subtype /Form /BBox [0 0 612 792]"
    return one_page(stream(b"/A Do"), *forms, stream(RED_SQUARE, last))
