import json
from typing import Any

import pytest
from bodies import URL, body, error_of
from conftest import ClientFactory
from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.errors import APIError
from stonechat_server.limits import check_depth

JSON = st.recursive(
    st.none() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth_of, value), default=0)
    return 0


@given(value=JSON, limit=st.integers(0, 6))
def test_depth_is_that_of_the_json(value: Any, limit: int) -> None:
    encoded = json.dumps(value).encode()
    if depth_of(value) > limit:
        with pytest.raises(APIError):
            check_depth(encoded, limit)
    else:
        check_depth(encoded, limit)


def test_depth_is_checked_in_linear_time() -> None:
    check_depth(b'{"a": "' + b"[" * 4_000_000, 64)
    check_depth(b'"\\' * 1_000_000 + b"[{" * 40, 10_000)
    check_depth(b"[]" * 300_000, 64)


def test_limits_are_client_errors(new_client: ClientFactory) -> None:
    client = new_client(max_messages=3, max_json_depth=8, max_completion_total=1000)
    message = {"role": "user", "content": "hi"}
    error = error_of(client.post(URL, json=body(messages=[message] * 4)))
    assert (error["param"], error["code"]) == ("messages", "too_many_messages")
    assert client.post(URL, json=body(messages=[message] * 3)).status_code == 200
    deep = b'{"model": "tiny-test", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert error_of(client.post(URL, content=deep))["code"] == "json_too_deep"
    error = error_of(client.post(URL, json=body(n=11, max_tokens=100)))
    assert (error["param"], error["code"]) == ("n", "request_too_large")
    assert client.post(URL, json=body(n=10, max_tokens=100)).status_code == 200
