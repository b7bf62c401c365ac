"""Only URLs that are written plainly, and whose hosts are allowed, are fetched."""

import pytest

from stonechat_server.media.allowed_urls import AllowedUrls, FileUrl, read_url
from stonechat_server.media.errors import UrlError
from stonechat_server.settings import Settings

ANY = AllowedUrls(["*"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/x.png", FileUrl("a.example", 443, "/x.png")),
        ("HTTPS://A.Example", FileUrl("a.example", 443, "/")),
        ("https://a.example:443?q=1#f", FileUrl("a.example", 443, "/?q=1")),
        ("https://a.example/p;x?q=/../%2e%2e&b=@", None),
        ("https://xn--bcher-kva.example//x", FileUrl("xn--bcher-kva.example", 443, "//x")),
    ],
)
def test_plain_urls(url: str, expected: FileUrl | None) -> None:
    wanted = read_url(url)
    assert wanted == (expected or FileUrl("a.example", 443, "/p;x?q=/../%2e%2e&b=@"))


@pytest.mark.parametrize(
    "url",
    [
        # other schemes
        *("http://a.example/x", "file:///etc/passwd", "ftp://a.example", "gopher://a.example"),
        *(
            "//a.example/x",
            "a.example/x",
            "",
            "https:/a.example",
            "https:a.example",
            "jar:https://a",
        ),
        # addresses in every form
        *("https://127.0.0.1/", "https://8.8.8.8/", "https://2130706433/", "https://017700000001/"),
        *("https://0x7f000001/", "https://0x7f.1/", "https://127.1/", "https://0177.0.0.1/"),
        *("https://0/", "https://0.0.0.0/", "https://[::1]/", "https://[::ffff:127.0.0.1]/"),
        *("https://[64:ff9b::7f00:1]/", "https://[fe80::1%25eth0]/", "https://a.example.1/"),
        *("https://a.0x7f/", "https://127.0.0.1./", "https://127\u30020\u30020\u30021/"),
        # users, and what only looks like a host
        *("https://user@a.example/", "https://user:pw@a.example/", "https://a.example@10.0.0.1/"),
        *(
            "https://a.example:443@10.0.0.1/",
            "https://@a.example/",
            "https://a.example\\@10.0.0.1/",
        ),
        *(
            "https://a.example\\.b.example/",
            "https://a.example%2f@10.0.0.1/",
            "https://a%2eexample/",
        ),
        # ports
        *("https://a.example:0/", "https://a.example:65536/", "https://a.example:x/"),
        *("https://a.example:/", "https://a.example:443:443/", "https://a.example:-1/"),
        *("https://a.example:000443/", f"https://a.example:1{'9' * 20}/"),
        f"https://a.example:000001{'9' * 4400}/",
        "https://a.example:\u0664\u0664\u0663/",
        # characters that programs read in different ways
        *(
            "https://a.example /",
            " https://a.example/",
            "https://a.example/a b",
            "https://a.exa\tmple/",
        ),
        *("https://a.example/\r\nHost: b", "https://a.example/\n", "https://b\u00fccher.example/"),
        *("https://a.example./", "https://.example/", "https://a..example/", "https://-a.example/"),
        *(
            "https:///x",
            "https://?x",
            "https://a.example/\x00",
            "https://" + "a" * 64 + ".example/",
        ),
        "https://a.example/" + "x" * 9_000,
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UrlError):
        ANY.check(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "is empty"),
        ("iVBORw0KGgo" + "A" * 9_000, "must begin with data: or https:// (base64: data:image/png;"),
        ("http://a.example/", "must begin with data: or https://"),
    ],
)
def test_errors_say_what_to_do(url: str, reason: str) -> None:
    with pytest.raises(UrlError) as error_info:
        read_url(url)
    assert str(error_info.value).startswith(reason)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("a.example", "https://a.example/x"),
        ("A.Example", "https://a.example/x"),
        ("*.example", "https://a.example/x"),
        ("*.example", "https://b.a.example/x"),
        ("*", "https://a.example/x"),
        ("a.example:8443", "https://a.example:8443/x"),
    ],
)
def test_patterns_allow(pattern: str, url: str) -> None:
    AllowedUrls(["other.test", pattern]).check(url)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("a.example", "https://b.a.example/x"),
        ("a.example", "https://xa.example/x"),
        ("a.example", "https://a.example.evil.test/x"),
        ("a.example", "https://a.example:8443/x"),
        ("a.example:8443", "https://a.example/x"),
        ("*.example", "https://example/x"),
        ("*.a.example", "https://xa.example/x"),
        ("*", "https://a.example:22/x"),
    ],
)
def test_patterns_allow_nothing_else(pattern: str, url: str) -> None:
    with pytest.raises(UrlError, match="--allow-image-urls"):
        AllowedUrls([pattern]).check(url)


def test_without_patterns_the_error_says_how_to_allow() -> None:
    with pytest.raises(UrlError, match=r"--allow-image-urls\): send the file as a data: URL"):
        AllowedUrls([]).check("https://a.example/x")


@pytest.mark.parametrize(
    "pattern", ["https://a.example", "a.example/x", "a*.example", "10.0.0.1", ""]
)
def test_patterns_are_checked_at_the_start(pattern: str) -> None:
    with pytest.raises(ValueError, match="allow_image_urls"):
        Settings(allow_image_urls=[pattern])


def test_patterns_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STONECHAT_ALLOW_IMAGE_URLS", "a.example, *.b.example:8443")
    assert Settings().allow_image_urls == ["a.example", "*.b.example:8443"]
