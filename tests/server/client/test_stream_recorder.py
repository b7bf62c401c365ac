"""The stream recorder on bytes that are split anywhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stonechat_server.client.stream_recorder import StreamRecorder, new_chunk_decoder

STREAM = (
    b": keep-alive\n\n"
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"h\xc3\xa9"}}]}\r\n\r\n'
    b'data:{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}\n\n'
    b"data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    recorder = StreamRecorder(new_chunk_decoder())
    positions = [0, *sorted(cuts), len(STREAM)]
    for number, (start, end) in enumerate(pairwise(positions)):
        recorder.feed(STREAM[start:end], float(number))
    assert "".join(recorder.text) == "hé"
    assert "".join(recorder.reasoning) == "hm"
    assert len(recorder.token_times) == 3
    assert recorder.finish_reasons == {0: "stop"}
    assert recorder.usage is not None
    assert recorder.usage.completion_tokens == 3
    assert recorder.usage.prompt_tokens_details is not None
    assert recorder.usage.prompt_tokens_details.cached_tokens == 2
    assert recorder.done
    assert recorder.error is None


def test_times_are_those_of_the_read() -> None:
    recorder = StreamRecorder(new_chunk_decoder())
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    recorder.feed(event + event[:20], 1.0)
    recorder.feed(event[20:], 2.5)
    assert recorder.token_times == [1.0, 2.5]


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b'data: {"error":{"message":"bad"}}\n\n', "bad"), (b"data: {nonsense\n\n", "not valid")],
)
def test_errors_in_the_stream_are_kept(data: bytes, expected: str) -> None:
    recorder = StreamRecorder(new_chunk_decoder())
    recorder.feed(data, 0.0)
    assert expected in (recorder.error or "")
    assert not recorder.done
