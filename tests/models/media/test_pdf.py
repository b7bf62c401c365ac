"""PDF files become the texts of their pages, and images of them, in processes that limits end."""

import io
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pypdfium2
import pytest
from PIL import Image

from stonechat_models.errors import InvalidMediaError
from stonechat_models.media.document import worker
from stonechat_models.media.document.pdf import read_pdf
from stonechat_models.media.document.processor import DocumentProcessor
from stonechat_models.media.records import (
    Answer,
    DocumentOptions,
    Page,
    Task,
    UnusableMediaError,
)
from tests.models.media import pdfs
from tests.models.media.pdfs import RED_SQUARE, pdf

HANG_SECONDS = 120.0


def options(**changes: Any) -> DocumentOptions:
    values = {"max_pages": 9, "max_characters": 1000, "max_images": 4, "max_pixels": 10_000}
    return DocumentOptions(**(values | changes))


def texts(file: bytes, **changes: Any) -> list[str]:
    return [page.text for page in read_pdf(file, options(**changes)).pages]


def pixels(page: Page) -> "np.ndarray[Any, Any]":
    return np.asarray(Image.open(io.BytesIO(page.image)))


def test_texts_of_pages() -> None:
    first = "Überschrift „quoted” €5\nsecond line"
    assert texts(pdf(first, "", "third page")) == [first, "", "third page"]


def test_a_hyphen_at_the_end_of_a_line_stays() -> None:
    """The page shows it: joined, 10-20 would become 1020."""
    assert texts(pdf("pages 10-\n20")) == ["pages 10-\n20"]


def test_text_outside_of_the_page_is_not_read() -> None:
    hidden = b"BT /F1 12 Tf 5000 5000 Td (hidden) Tj ET " + pdfs.written("shown")
    assert texts(pdf(hidden)) == ["shown"]


def test_values_of_forms_are_text() -> None:
    file = pdfs.filled_form("Ada Lovelace")
    assert texts(file) == ["Ada Lovelace"]
    [page] = read_pdf(file, options(images="all")).pages
    assert pixels(page).min() < 200


def test_other_bytes_may_stand_before_the_file() -> None:
    assert texts(b"\0\r\n" + pdf("a")) == ["a"]


def test_pages_without_text_become_images() -> None:
    file = pdf("text", RED_SQUARE, b"")
    none, missing, every = [
        read_pdf(file, options(images=images)).pages for images in ("none", "missing", "all")
    ]
    assert [bool(page.image) for page in none] == [False, False, False]
    assert [bool(page.image) for page in missing] == [False, True, False]
    assert [bool(page.image) for page in every] == [True, True, False]
    image = pixels(missing[1]).astype(int)
    height, width, _ = image.shape
    assert 9_000 < height * width <= 10_000
    assert abs(height / width - 792 / 612) < 0.02
    assert np.abs(image - [255, 0, 0]).max() < 12
    assert pixels(every[0]).min() < 200


@pytest.mark.parametrize("size", [(1, 1), (14_000, 1), (1, 14_000), (2_000_000_000, 2_000_000_000)])
def test_a_page_of_any_size_becomes_an_image(size: tuple[int, int]) -> None:
    [page] = read_pdf(pdf(b"1 0 0 rg 0 0 99999 99999 re f", size=size), options(images="all")).pages
    height, width, _ = pixels(page).shape
    assert height * width <= 10_000


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (b"", "broken"),
        (b"%PDF-1.7", "broken"),
        (pdf("a")[:300], "broken"),
        (pdfs.file_of([pdfs.CATALOG, b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"]), "broken"),
        (pdfs.file_of([pdfs.CATALOG, b"<< /Type /Pages /Kids [] /Count 0 >>"]), "broken"),
        (pdfs.encrypted(), "encrypted"),
        (pdf(*10 * ["a"]), "too_many_pages"),
        (pdf(*3 * ["\n".join(10 * ["a" * 40])]), "too_many_characters"),
        (pdf(*5 * [RED_SQUARE]), "too_many_images"),
    ],
)
def test_what_is_refused(file: bytes, kind: str) -> None:
    with pytest.raises(UnusableMediaError) as raised:
        read_pdf(file, options(images="missing"))
    assert raised.value.kind == kind


def test_no_script_can_run() -> None:
    """The library has no engine for scripts, and none for XFA, which brings scripts along."""
    assert {"V8", "XFA"}.isdisjoint(pypdfium2.PDFIUM_INFO.flags)


@pytest.fixture(scope="module")
def processor() -> Iterator[DocumentProcessor]:
    processor = DocumentProcessor(1)
    yield processor
    processor.close()


def test_a_process_reads_documents_once(processor: DocumentProcessor) -> None:
    first = processor.prepare([pdf("a")], options()).result(HANG_SECONDS)
    again = processor.prepare([pdf("a")], options()).result(HANG_SECONDS)
    other = processor.prepare([pdf("a")], options(images="all")).result(HANG_SECONDS)
    assert first[0] is again[0]
    assert (first[0].pages[0].text, first[0].pages[0].image) == ("a", b"")
    assert other[0].pages[0].image


@pytest.mark.parametrize(
    "file",
    [
        pdfs.inflated(2**32),
        pytest.param(pdfs.laughing(12), marks=pytest.mark.nightly),
    ],
    ids=["inflated", "laughing"],
)
def test_a_bomb_is_refused_and_hurts_no_other(processor: DocumentProcessor, file: bytes) -> None:
    assert len(file) < 10_000
    with pytest.raises(InvalidMediaError) as raised:
        processor.prepare([file], options(images="all")).result(HANG_SECONDS)
    assert raised.value.kind == "too_large"
    [document] = processor.prepare([pdf("b")], options()).result(HANG_SECONDS)
    assert document.pages[0].text == "b"


def test_whatever_fails_is_the_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("a side of 99999999999")

    monkeypatch.setattr(worker, "read_pdf", fail)
    task = Task(b"", options(), b"")
    answer = msgspec.msgpack.decode(worker.answer(msgspec.msgpack.encode(task)), type=Answer)
    assert (answer.kind, answer.prepared) == ("broken", None)
    assert "a side of 99999999999" in answer.reason


def test_objects_that_nest_deeply_hurt_nothing(processor: DocumentProcessor) -> None:
    nested = pdfs.one_page(pdfs.stream(b"/A Do"), b"[" * 200_000 + b"]" * 200_000)
    [document] = processor.prepare([nested], options(images="all")).result(HANG_SECONDS)
    assert [page.text for page in document.pages] == [""]


def test_pages_without_text_take_memory(processor: DocumentProcessor) -> None:
    """Documents are kept up to a number of bytes: no document has none."""
    [empty] = processor.prepare([pdf(*9 * [""])], options()).result(HANG_SECONDS)
    [wide] = processor.prepare([pdf("\u201equoted")], options()).result(HANG_SECONDS)
    assert empty.num_bytes > 9 * 32
    assert wide.num_bytes > 2 * len("\u201equoted")
