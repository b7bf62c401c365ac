import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.access.keys_file import add_key
from stonechat_server.errors import APIError
from stonechat_server.request.body import check_json
from stonechat_server.settings import Settings
from tests.server.bodies import URL, body, error_of
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, text_script
from tests.server.fake_media import seeing_engine
from tests.server.live import live_server

JSON = st.recursive(
    st.none() | st.text(max_size=8) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


def size_of(value: Any) -> int:
    """How many containers there are, plus the commas between their members."""
    if not isinstance(value, dict | list):
        return 0
    members = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(members) - 1) + sum(map(size_of, members))


@given(value=JSON, depth=st.integers(1, 6), size=st.integers(1, 12))
def test_depth_and_size_of_json_are_limited(value: Any, depth: int, size: int) -> None:
    limits = Settings.model_construct(max_json_depth=depth, max_json_values=size)
    encoded = json.dumps(value).encode()
    if depth_of(value) > depth or size_of(value) > size:
        with pytest.raises(APIError):
            check_json(encoded, limits)
    else:
        check_json(encoded, limits)


@pytest.mark.parametrize("num_values", [63, 64])
@pytest.mark.parametrize("form", ['"{}"', '{{"data" : "{}"}}', '{{"images":["{}"]}}'])
def test_long_base64_changes_nothing(num_values: int, form: str) -> None:
    """Strings are passed over or read, with the same count of what stands around them."""
    for before, inside in product(("", "a", '\\"', "[["), ("", "[", ",", '\\"', "\\\\", "[{,")):
        check_long_base64(before, inside, num_values, form)


def check_long_base64(before: str, inside: str, num_values: int, form: str) -> None:
    is_object, num_around = form.startswith("{"), sum(map(form.count, ("{{", "[")))
    limits = Settings.model_construct(
        max_json_depth=4, max_json_values=64 + num_values * num_around
    )
    mark = "" if is_object else ";base64,"
    string = form.format(f"{before}{mark}{inside}{'A' * 5000}")
    encoded = f"[{', '.join([string] * num_values)}]".encode()
    assert len(json.loads(encoded)) == num_values
    if num_values > 63:
        encoded = encoded[:-1] + b",1]"
        with pytest.raises(APIError):
            check_json(encoded, limits)
    else:
        check_json(encoded, limits)


def test_values_around_many_images_are_counted() -> None:
    images = [f"data:image/png;base64,{'A' * 5000}"] * 2000
    limits = Settings.model_construct(max_json_depth=4, max_json_values=2001)
    check_json(json.dumps([images]).encode(), limits)
    with pytest.raises(APIError):
        check_json(json.dumps([images, 1]).encode(), limits)
    with pytest.raises(APIError):
        check_json(json.dumps([[[[images]]]]).encode(), limits)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ('["data:image/png;base64,{}"]', True),
        ('{{"type": "base64", "data":"{}"}}', True),
        ('{{"input_audio": {{"data": "{}", "format": "wav"}}}}', True),
        ('{{"data"\n: "{}"}}', True),
        ('{{"images" : [ "{}"]}}', True),
        ('{{"images": ["x", "{0}" ,\n"{0}"]}}', True),
        ('{{"images": [1, "{}"]}}', False),
        ('{{"images": ["x"], "text": "{}"}}', False),
        ('["x\\"data","{}"]', False),
        ('{{"text": "{}"}}', False),
        ('["{}"]', False),
        ('["data:image/png;base64,{}\\"]', False),
    ],
)
def test_text_that_is_too_large_is_refused_before_it_is_parsed(text: str, is_allowed: bool) -> None:
    limits = Settings.model_construct(
        max_body_size=1000, max_images=1, max_audio_clips=1, max_videos=0, max_documents=0
    )
    data = "A" * 9000 + "\\/" + "A" * 9000  # some clients escape slashes
    if is_allowed:
        check_json(text.format(data).encode(), limits)
        return
    with pytest.raises(APIError) as error_info:
        check_json(text.format(data).encode(), limits)
    assert error_info.value.status == 413


def test_what_stands_between_images_is_checked() -> None:
    limits = Settings.model_construct(max_json_depth=4, max_json_values=10**6)
    deep = "[" * 9000 + "]" * 9000
    for text in ('{"images": ["x\\",", %s, "y"]}', '{"images": ["x", %s, "y"]}'):
        json.loads(text % "[]")
        with pytest.raises(APIError, match="deeper than 4"):
            check_json((text % deep).encode(), limits)


def test_endpoints_without_images_read_no_more_than_text() -> None:
    engine = seeing_engine(text_script("a"))
    with live_server(engine, max_body_size=1000) as live:
        for path, status in (("/v1/completions", 413), ("/detokenize", 413), (URL, 400)):
            field = {"prompt": "x", "tokens": [1], "messages": 1, "data": "A" * 30_000}
            response = httpx.post(live.url + path, json=field)
            assert response.status_code == status, path


@pytest.mark.parametrize(
    ("data", "is_small"),
    [
        (b"[" + b"1," * 7_900, True),
        (b"[" + b"123 ,\n " * 7_900, True),
        (b"[" + b"1," * 8_100, False),
        (b"[" + b"[1,2,3]," * 320, True),
        (b"[" + b"[1,2,3]," * 340, False),
        (b"[" + b"1.5,2.5," * 490, True),
        (b"[" + b"1.5,2.5," * 510, False),
        (b"[" + b"-1,-2," * 510, False),
        (b'["' + b"1," * 9_000 + b'"]', True),
    ],
)
def test_eight_integers_count_as_one_value(data: bytes, is_small: bool) -> None:
    limits = Settings.model_construct(max_json_depth=10, max_json_values=1_000)
    if is_small:
        check_json(data, limits)
    else:
        with pytest.raises(APIError):
            check_json(data, limits)


@pytest.mark.parametrize(
    "data",
    [
        b"1," * 800_000,
        b"[1 " * 400_000,
        b"1 " * 800_000,
        b"1" * 1_600_000,
        b"1" + b" " * 1_600_000,
        (b"1" * 1_000 + b" ") * 1_600,
        b"1 ," * 400_000,
        b'{"a": "' + b"[" * 800_000,
        b'"\\' * 200_000 + b"[{" * 20_000,
        b"[]" * 600_000,
        b"null," * 300_000,
        b'"' * 800_000,
        b'""' * 800_000,
        b"]" * 1_600_000,
        b'{"a": "' + b"x, y" * 400_000 + b'"}',
        b";base64," * 200_000,
        b'"data": "' * 160_000,
    ],
)
def test_json_is_checked_in_linear_time(data: bytes) -> None:
    """Few brackets and commas need no check, so there are some more in front."""
    with hang_limit(), suppress(APIError):
        check_json(b"[" + b"[]," * 100 + data, Settings(max_json_values=10**9))


@contextmanager
def hang_limit(seconds: float = 60.0) -> Iterator[None]:
    """Fail if the block takes so much processor time. Work that is not linear takes hours."""

    def fail(*_: object) -> None:
        raise AssertionError(f"no end in {seconds} s")

    previous = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


def test_limits_are_client_errors(new_client: ClientFactory) -> None:
    client = new_client(max_messages=3, max_json_depth=8, max_completion_total=1000)
    message = {"role": "user", "content": "hi"}
    error = error_of(client.post(URL, json=body(messages=[message] * 4)))
    assert (error["param"], error["code"]) == ("messages", "too_many_messages")
    assert client.post(URL, json=body(messages=[message] * 3)).status_code == 200
    deep = b'{"model": "tiny-test", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    error = error_of(client.post(URL, content=deep))
    assert error["code"] == "json_too_deep"
    assert "--max-json-depth" in error["message"]
    wide = b'{"model": "tiny-test", "messages": [' + b"{}," * 60_000 + b"{}]}"
    error = error_of(client.post(URL, content=wide))
    assert error["code"] == "json_too_large"
    assert "more than 50000 values" in error["message"]
    assert "--max-json-values" in error["message"]
    error = error_of(client.post(URL, json=body(n=11, max_tokens=100)))
    assert (error["param"], error["code"]) == ("n", "request_too_large")
    assert client.post(URL, json=body(n=10, max_tokens=100)).status_code == 200


def test_a_limit_that_the_client_did_not_set_is_lowered(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = new_client(max_completion_total=1000)
    assert client.post(URL, json=body(n=3, min_tokens=500)).status_code == 200
    assert engine.requests[-1].params.max_tokens == 333
    assert engine.requests[-1].params.min_tokens == 333


def test_alternatives_of_a_plain_answer_count(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    client = new_client(max_completion_total=1000)
    many = {"n": 2, "logprobs": True, "top_logprobs": 20}
    error = error_of(client.post(URL, json=body(max_tokens=101, **many)))
    assert (error["param"], error["code"]) == ("n", "request_too_large")
    assert "max_completion_tokens to 100, or stream" in error["message"]
    assert client.post(URL, json=body(max_tokens=100, **many)).status_code == 200
    assert client.post(URL, json=body(max_tokens=101, stream=True, **many)).status_code == 200
    assert client.post(URL, json=body(**many)).status_code == 200
    assert engine.requests[-1].params.max_tokens == 100


def test_a_client_that_sends_too_much_can_read_the_answer() -> None:
    with live_server(FakeEngine(), max_body_size=1000) as live:
        for _ in range(5):
            response = httpx.post(live.url + URL, content=b"x" * 4_000_000)
            assert response.status_code == 413
        chunks = (b"x" * 100_000 for _ in range(40))
        assert httpx.post(live.url + URL, content=chunks).status_code == 413
        with socket.create_connection(("127.0.0.1", live.port), timeout=60) as client:
            head = f"POST {URL} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {10**12}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_key_that_is_refused_early_can_read_the_answer(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.toml", "alice", requests_per_minute=1)
    headers = {"authorization": f"Bearer {secret}", "connection": "close"}
    with live_server(FakeEngine(), keys_file=tmp_path / "keys.toml") as live:
        assert httpx.post(live.url + URL, json=body(), headers=headers).status_code == 200
        for _ in range(5):
            response = httpx.post(live.url + URL, content=b"x" * 4_000_000, headers=headers)
            assert response.status_code == 429
