"""Images inside a request."""

import base64
import tracemalloc
from urllib.parse import quote

import pytest

from stonechat_server.media import data_urls
from stonechat_server.media.data_urls import holds_file, read_inline
from stonechat_server.media.errors import MediaError, UrlError, refused
from stonechat_server.media.file_types import check_type, image_type
from tests.server.fake_media import JPEG, PNG

FILES = {
    "image/png": PNG + b"x",
    "image/jpeg": JPEG + b"x",
    "image/gif": b"GIF89ax",
    "image/webp": b"RIFF\x05\0\0\0WEBPx",
}


def url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize("media_type", FILES)
def test_each_type_is_read(media_type: str) -> None:
    content = FILES[media_type]
    assert image_type(content) == media_type
    assert read_inline(url(content, media_type), 100) == content
    assert read_inline(url(content, ""), 100) == content


PIXELS = PNG + bytes(range(200, 256))
"""The base64 of it has a plus and a slash."""
ENCODED = base64.b64encode(PIXELS).decode()


@pytest.mark.parametrize(
    "given",
    [
        url(PIXELS, "image/jpeg"),
        url(PIXELS, "application/octet-stream"),
        url(PIXELS).replace("data:image/png;", "DATA:Image/PNG;charset=utf-8;"),
        url(PIXELS).replace(";base64", "; BASE64"),
        "data:image/png;base64," + base64.encodebytes(PIXELS).decode().replace("\n", "\r\n"),
        "data:image/png;base64," + quote(ENCODED, safe=""),
        "data:image/png;base64," + base64.urlsafe_b64encode(PIXELS).decode(),
        url(PIXELS).rstrip("="),
        ENCODED,
    ],
)
def test_other_spellings(given: str) -> None:
    assert {"+", "/", "="} <= set(ENCODED)
    assert holds_file(given)
    assert read_inline(given, 100) == PIXELS


@pytest.mark.parametrize(
    "given", ["https://a.example/" + "a" * 99, "a" * 40, "/home/me/pictures/photo-" + "1" * 99]
)
def test_what_is_no_base64_alone(given: str) -> None:
    assert not holds_file(given)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("data:image/png,abc", "invalid_image_url"),
        ("data:image/png;base64", "invalid_image_url"),
        ("data:" + ";" * 200 + "base64,", "invalid_image_url"),
        ("data:image/png;base64,a b=c", "invalid_base64_image"),
        ("data:image/png;base64,abcde", "invalid_base64_image"),
        ("data:image/png;base64,YQ==YQ==", "invalid_base64_image"),
        ("data:image/png;base64,\u00e4", "invalid_base64_image"),
        ("data:image/png;base64,", "empty_image_file"),
        (url(b"<svg/>", "image/svg+xml"), "unsupported_image_media_type"),
        (url(b"BM bitmap", "image/bmp"), "unsupported_image_media_type"),
        (url(b"%PDF-1.7", "application/pdf"), "unsupported_image_media_type"),
        (url(b"%PDF-1.7"), "unsupported_image_media_type"),
        (url(PNG + b"x" * 93), "image_file_too_large"),
        ("data:image/png;base64," + "A" * 10_000, "image_file_too_large"),
    ],
)
def test_what_is_wrong_with_a_url(given: str, code: str) -> None:
    with pytest.raises(MediaError) as error_info:
        check_type(read_inline(given, 100), "image")
    assert refused("content[0]", "image", error_info.value).code == code


def test_a_long_head_takes_no_memory() -> None:
    given = "data:" + ";" * 1_000_000
    tracemalloc.start()
    with pytest.raises(UrlError, match="more than 200 characters before its comma"):
        read_inline(given, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000


@pytest.mark.parametrize("unit", ["%2B", "ab ", "abcd\n", "-_\t", "%41"])
def test_no_spelling_takes_much_memory(unit: str) -> None:
    given = unit * 100_000
    tracemalloc.start()
    with pytest.raises(MediaError):
        read_inline(given, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * len(given)


def test_the_largest_file() -> None:
    assert len(read_inline(url(PNG + b"x" * 92), 100)) == 100


def test_long_data_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_urls, "PIECE", 8)
    for size in range(1, 40):
        content = PNG + bytes(range(size))
        assert read_inline(url(content), 100) == content
    for wrong in ("YWJjZA==YWJj", "YWJj====", "YWJjYWJj=", "YWJjYWJjY"):
        with pytest.raises(MediaError, match="base64"):
            read_inline(f"data:;base64,{wrong}", 100)
