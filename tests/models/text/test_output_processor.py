from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stonechat_models.text.output_processor import OutputProcessor, join_outputs
from stonechat_models.text.tokenizer import Tokenizer
from stonechat_models.types import (
    CompletionDelta,
    FinishReason,
    GenerateRequest,
    LogprobEntry,
    SamplingParams,
    StopRules,
    StopScope,
    TokenLogprobs,
    TokenOutput,
)
from tests.models.tiny_tokenizers import (
    EOS,
    EXTRA,
    OTHER,
    byte_level_backend,
    sentencepiece_backend,
    wrap,
)

BACKEND = byte_level_backend(parts=("世".encode()[1:], "👩".encode()[:3], b"\xf0\x9f", b"\xffa"))
TOKENIZER = wrap(BACKEND)
EOS_ID, OTHER_ID = BACKEND.token_to_id(EOS), BACKEND.token_to_id(OTHER)
NUM_VISIBLE = min(EOS_ID, OTHER_ID)
LLAMA = wrap(sentencepiece_backend(), "</s>")

# Bytes of a few letters, of whole and of incomplete characters, and longer tokens.
IDS = st.lists(
    st.one_of(
        st.sampled_from([ord("a"), ord("b"), ord("c"), ord("d")]),
        st.sampled_from(list("世👩é\ufffd".encode())),
        st.integers(0, NUM_VISIBLE - 1),
        st.just(OTHER_ID),
    ),
    max_size=14,
)
TEXTS = st.text(alphabet="abcd世👩é\u0301 \ufffd", min_size=1, max_size=5)
STOPS = st.lists(TEXTS, max_size=4)
VALID = st.text(alphabet="abcd世👩é\u0301\u200d ", max_size=12)


@dataclass
class Reference:
    """The output that a list of tokens should have, by definition and without streaming."""

    text: str
    num_tokens: int
    stop: str | None
    given_out: list[str]
    """All text that is released after each token."""


def is_incomplete(tail: bytes) -> bool:
    """Return whether some bytes after `tail` would complete it to one character."""
    if len(tail) == 2 and tail[0] == 0xED and 0xA0 <= tail[1] <= 0xBF:
        return True  # half a surrogate: Python's decoder waits for a third byte before it refuses
    probes = (0x80, 0x90, 0x9F, 0xA0, 0xBF)
    ends = [bytes(p) for n in (1, 2, 3) for p in ([x, 0x80, 0x80][:n] for x in probes)]
    for end in ends:
        try:
            if len((tail + end).decode("utf-8")) == 1:
                return True
        except UnicodeDecodeError:
            continue
    return False


def certain_text(data: bytes) -> str:
    """Return the text of `data` that no later bytes can change."""
    for num_pending in (3, 2, 1):
        if len(data) >= num_pending and is_incomplete(data[-num_pending:]):
            return data[:-num_pending].decode("utf-8", "replace")
    return data.decode("utf-8", "replace")


def held_length(text: str, stops: Iterable[str]) -> int:
    return max((n for s in stops for n in range(len(s)) if text.endswith(s[:n])), default=0)


def reference(ids: list[int], stops: list[str], include: bool, min_tokens: int) -> Reference:
    data, before, given_out = b"", "", []
    for count, token_id in enumerate([*ids, None], 1):
        if token_id is None:
            text = data.decode("utf-8", "replace")
        else:
            data += b"" if token_id in TOKENIZER.special_ids else TOKENIZER.token_bytes(token_id)
            text = certain_text(data)
        num_tokens = min(count, len(ids))
        for end in range(len(before) + 1, len(text) + 1):
            matches = [s for s in stops if text[:end].endswith(s)]
            if matches and num_tokens >= min_tokens:
                stop = max(matches, key=len)
                text = text[:end] if include else text[: end - len(stop)]
                return Reference(text, num_tokens, stop, [*given_out, text])
        before = text
        num_held = 0 if include or token_id is None else held_length(text, stops)
        given_out.append(text[: len(text) - num_held])
    return Reference(before, len(ids), None, given_out)


def request(**params: object) -> GenerateRequest:
    return GenerateRequest(
        request_id="r",
        prompt_token_ids=[1, 2, 3],
        params=SamplingParams(**params),  # type: ignore[arg-type]
    )


def stop_rules(*strings: str, **rules: object) -> StopRules:
    return StopRules(strings=strings, **rules)  # type: ignore[arg-type]


def token_output(
    ids: Iterable[int],
    finish: FinishReason | None = None,
    *,
    index: int = 0,
    end: int | None = None,
    error: str | None = None,
) -> TokenOutput:
    ids = tuple(ids)
    logprobs = tuple(TokenLogprobs(i, -float(k), (i, 97), (-1.0, -2.0)) for k, i in enumerate(ids))
    return TokenOutput("r", index, ids, logprobs, finish, 5, end, error=error)


def stream(
    ids: list[int], sizes: list[int], tokenizer: Tokenizer = TOKENIZER, **params: object
) -> list[CompletionDelta]:
    """Return the deltas of tokens in groups of `sizes`, then one at a time, then the length end."""
    processor = OutputProcessor(tokenizer, request(**params))
    deltas: list[CompletionDelta] = []
    rest, groups = list(ids), list(sizes)
    while rest:
        size = groups.pop(0) if groups else 1
        deltas += processor.process([token_output(rest[:size])]).deltas
        rest = rest[size:]
    last = processor.process([token_output([], FinishReason.LENGTH)])
    assert last.finished
    return [*deltas, *last.deltas]


def text_of(deltas: Iterable[CompletionDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def entries_of(deltas: Iterable[CompletionDelta]) -> list[LogprobEntry]:
    return [entry for delta in deltas for entry in delta.logprobs or ()]


@settings(max_examples=400, deadline=None)
@given(IDS, STOPS, st.booleans(), st.integers(0, 6), st.lists(st.integers(1, 4), max_size=6))
def test_text_is_what_the_definition_says(
    ids: list[int], stops: list[str], include: bool, min_tokens: int, sizes: list[int]
) -> None:
    expected = reference(ids, stops, include, min_tokens)
    params = {
        "stop": stop_rules(*stops) if stops else None,
        "include_stop_str_in_output": include,
        "min_tokens": min_tokens,
    }
    deltas = stream(ids, sizes, **params)
    assert text_of(deltas) == expected.text
    assert sum(delta.num_tokens for delta in deltas) == expected.num_tokens
    assert [i for delta in deltas for i in delta.token_ids] == ids[: expected.num_tokens]
    assert deltas[-1].stop_reason == expected.stop
    expected_reason = FinishReason.LENGTH if expected.stop is None else FinishReason.STOP
    assert deltas[-1].finish_reason is expected_reason
    assert all(delta.finish_reason is None for delta in deltas[:-1])


@settings(max_examples=300, deadline=None)
@given(IDS, STOPS, st.booleans(), st.integers(0, 6))
def test_each_token_releases_all_safe_text_and_no_more(
    ids: list[int], stops: list[str], include: bool, min_tokens: int
) -> None:
    expected = reference(ids, stops, include, min_tokens)
    params = {
        "stop": stop_rules(*stops) if stops else None,
        "include_stop_str_in_output": include,
        "min_tokens": min_tokens,
    }
    deltas = stream(ids, [], **params)
    so_far = [text_of(deltas[: i + 1]) for i in range(len(deltas))]
    assert so_far == expected.given_out


@given(st.lists(st.integers(0, NUM_VISIBLE + 1), max_size=20))
def test_text_is_the_librarys_decoding(ids: list[int]) -> None:
    assert text_of(stream(ids, [])) == BACKEND.decode(ids, skip_special_tokens=True)
    deltas = stream(ids, [], skip_special_tokens=False)
    assert text_of(deltas) == BACKEND.decode(ids, skip_special_tokens=False)


@given(st.lists(st.integers(0, LLAMA.vocab_size - 1), max_size=12))
def test_sentencepiece_text_is_its_decoding(ids: list[int]) -> None:
    assert text_of(stream(ids, [], LLAMA)) == LLAMA.decode(ids)


def byte_ids(text: str, cuts: list[int]) -> list[int]:
    """Return tokens of `text`: longer pieces that match at a position in `cuts`, else bytes."""
    data, ids, position = text.encode(), [], 0
    pieces = [extra.encode() for extra in EXTRA]
    while position < len(data):
        matches = [p for p in pieces if data.startswith(p, position)]
        if matches and position in cuts:
            piece = max(matches, key=len)
            ids.append(next(i for i in range(NUM_VISIBLE) if TOKENIZER.token_bytes(i) == piece))
            position += len(piece)
        else:
            ids.append(data[position])
            position += 1
    return ids


@settings(max_examples=300, deadline=None)
@given(VALID, st.lists(st.integers(0, 30)), STOPS, st.booleans())
def test_logprob_entries_follow_their_text(
    text: str, cuts: list[int], stops: list[str], include: bool
) -> None:
    ids = byte_ids(text, cuts)
    starts = [len(b"".join(map(TOKENIZER.token_bytes, ids[:i]))) for i in range(len(ids))]
    params = {
        "stop": stop_rules(*stops) if stops else None,
        "include_stop_str_in_output": include,
        "top_logprobs": 2,
    }
    deltas = stream(ids, [], **params)
    for i in range(len(deltas)):
        num_bytes = len(text_of(deltas[: i + 1]).encode())
        entries = entries_of(deltas[: i + 1])
        assert [e.token_id for e in entries] == [
            t for t, start in zip(ids, starts, strict=True) if start < num_bytes
        ]
        assert b"".join(entry.bytes for entry in entries).startswith(text.encode()[:num_bytes])
    if deltas[-1].stop_reason is None:
        assert b"".join(entry.bytes for entry in entries_of(deltas)) == text.encode()


@given(IDS)
def test_every_visible_token_has_its_entry(ids: list[int]) -> None:
    entries = entries_of(stream(ids, [], top_logprobs=2))
    visible = [(k, i) for k, i in enumerate(ids) if i != OTHER_ID]
    assert [entry.token_id for entry in entries] == [i for _, i in visible]
    for entry in entries:
        assert entry.bytes == TOKENIZER.token_bytes(entry.token_id)
        assert entry.token == entry.bytes.decode("utf-8", "replace")
        assert [top.bytes for top in entry.top] == [entry.bytes, b"a"]


def test_an_entry_wholly_in_a_stop_string_is_dropped_after_broken_bytes() -> None:
    ids = [0xE4, 0xB8, ord("a"), ord("b")]
    deltas = stream(ids, [], stop=stop_rules("ab"), top_logprobs=0)
    assert text_of(deltas) == "\ufffd"
    assert [entry.token_id for entry in entries_of(deltas)] == [0xE4, 0xB8]


def test_no_entries_unless_requested() -> None:
    assert all(delta.logprobs is None for delta in stream([97, 98], []))


def test_end_tokens() -> None:
    cases = [
        # end token, parameters, text, entries, stop_reason
        (EOS_ID, {}, "a", [97], None),
        (EOS_ID, {"stop_token_ids": (EOS_ID,)}, "a", [97], None),
        (EOS_ID, {"stop_token_ids": (EOS_ID,), "ignore_eos": True}, "a", [97], EOS_ID),
        (98, {"stop_token_ids": (98,)}, "a", [97], 98),
        (98, {"stop_token_ids": (98,), "include_stop_str_in_output": True}, "ab", [97, 98], 98),
        (
            EOS_ID,
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
            "a",
            [97],
            None,
        ),
    ]
    for end, params, text, entries, stop_reason in cases:
        processor = OutputProcessor(TOKENIZER, request(top_logprobs=0, **params))
        output = processor.process([token_output([97, end], FinishReason.STOP, end=end)])
        (delta,) = output.deltas
        assert (delta.text, delta.token_ids, delta.num_tokens) == (text, (97, end), 2)
        assert [entry.token_id for entry in delta.logprobs or ()] == entries
        assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, stop_reason)
        assert output.finished
        assert processor.stopped_choices == []


def test_held_text_is_released_at_the_end() -> None:
    processor = OutputProcessor(TOKENIZER, request(stop=stop_rules("abX")))
    assert text_of(processor.process([token_output([97, 98, 0xE4])]).deltas) == ""
    last = processor.process([token_output([EOS_ID], FinishReason.STOP, end=EOS_ID)])
    assert text_of(last.deltas) == "ab\ufffd"


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_other_ends_keep_their_reason_and_their_text(reason: FinishReason) -> None:
    processor = OutputProcessor(TOKENIZER, request(stop=stop_rules("ab", "\ufffd")))
    processor.process([token_output([99, 97])])
    output = processor.process([token_output([0xE4], reason, error="it broke")])
    (delta,) = output.deltas
    assert (delta.finish_reason, delta.stop_reason, delta.text) == (reason, None, "a")
    assert (output.finished, output.error) == (True, "it broke")


def test_an_error_after_the_end_is_ignored() -> None:
    """A step may bring several tokens. Those after the stop string do not count."""
    processor = OutputProcessor(TOKENIZER, request(stop=stop_rules("ab")))
    error_output = token_output([], FinishReason.ERROR, error="no token is allowed")
    output = processor.process(
        [token_output([97]), token_output([98]), token_output([99]), error_output]
    )
    (delta,) = output.deltas
    assert (delta.finish_reason, delta.stop_reason) == (FinishReason.STOP, "ab")
    assert (output.finished, output.error) == (True, None)


def test_choices_are_independent_and_a_stop_is_reported_once() -> None:
    processor = OutputProcessor(TOKENIZER, request(n=3, stop=stop_rules("ab")))
    first = processor.process([token_output([97], index=i) for i in range(3)])
    assert [delta.text for delta in first.deltas] == ["", "", ""]
    second = processor.process([token_output([98], index=1), token_output([99], index=0)])
    assert {d.index: d.text for d in second.deltas} == {1: "", 0: "ac"}
    assert processor.stopped_choices == [1]
    late_outputs = [token_output([99], index=1), token_output([], FinishReason.ABORT, index=1)]
    assert processor.process(late_outputs).deltas == ()
    third = processor.process([token_output([98, 99], FinishReason.LENGTH, index=2)])
    assert third.deltas[0].finish_reason is FinishReason.STOP
    assert (third.deltas[0].num_tokens, processor.stopped_choices) == (1, [1])
    assert not third.finished
    assert processor.process([token_output([97], FinishReason.LENGTH, index=0)]).finished


def test_a_choice_can_be_ended_from_outside() -> None:
    processor = OutputProcessor(TOKENIZER, request(n=2))
    processor.process([token_output([97], index=i) for i in range(2)])
    assert (processor.end_choice(0), processor.end_choice(0)) == (True, False)
    late = processor.process([token_output([97], index=0)])
    assert (late.deltas, late.finished) == ((), False)
    last = processor.process([token_output([97], FinishReason.LENGTH, index=1)])
    assert last.finished
    assert not processor.end_choice(1)
    assert processor.stopped_choices == []


def test_predicted_tokens_are_summed_up_to_a_stop_string() -> None:
    processor = OutputProcessor(TOKENIZER, request(n=2, stop=stop_rules("ab")))

    def predicted(token_id: int, index: int) -> TokenOutput:
        return TokenOutput("r", index, (token_id,), None, None, 0, num_predicted=1)

    output = processor.process([predicted(99, 0), predicted(97, 1), token_output([99])])
    assert [delta.num_predicted for delta in output.deltas] == [1, 1]
    outputs = [predicted(97, 0), predicted(98, 0), predicted(99, 0), token_output([97], index=1)]
    output = processor.process(outputs)
    assert [delta.num_predicted for delta in output.deltas] == [2, 0]


def test_a_prompt_is_shown_with_its_first_output() -> None:
    prompt = [OTHER_ID, ord("a"), *"é".encode(), ord("b"), *"世".encode()[:2]]
    prompt_request = GenerateRequest(
        request_id="r", prompt_token_ids=prompt, params=SamplingParams(prompt_logprobs=2)
    )
    processor = OutputProcessor(TOKENIZER, prompt_request)
    logprobs = tuple(TokenLogprobs(i, -float(i), (97, i), (-1.0, -2.0), 2) for i in prompt[1:])
    first = processor.process(
        [msgspec.structs.replace(token_output([ord("x")]), prompt_logprobs=logprobs)]
    )
    second = processor.process([token_output([ord("y")], FinishReason.LENGTH)])
    assert first.prompt_logprobs is second.prompt_logprobs is None, "they take long to make"
    assert processor.prompt_logprobs == logprobs
    shown = processor.add_prompt_logprobs(join_outputs([first, second]))
    assert processor.prompt_logprobs is None
    assert shown.prompt_logprobs is not None
    nothing, *entries = shown.prompt_logprobs
    assert nothing is None
    assert [e.token for e in entries if e] == ["a", "", "é", "b", "", "\ufffd"]
    assert [e.bytes for e in entries if e] == [TOKENIZER.token_bytes(i) for i in prompt[1:]]
    assert [(e.token_id, e.logprob, e.rank) for e in entries if e] == [
        (i, -float(i), 2) for i in prompt[1:]
    ]
    assert entries[2] is not None
    assert [(t.token, t.bytes, t.logprob) for t in entries[2].top] == [
        ("a", b"a", -1.0),
        ("é", b"\xa9", -2.0),  # as the entry's own token
    ]
    assert [delta.text for delta in shown.deltas] == ["x", "y"]


def test_a_request_may_generate_nothing() -> None:
    processor = OutputProcessor(TOKENIZER, request(n=2, max_tokens=0, prompt_logprobs=0))
    ends = [token_output([], FinishReason.LENGTH, index=i) for i in range(2)]
    scores = tuple(TokenLogprobs(i, -1.0, rank=1) for i in (2, 3))
    output = processor.process(
        [msgspec.structs.replace(ends[0], prompt_logprobs=scores), *ends[1:]]
    )
    assert output.finished
    assert [(d.text, d.num_tokens, d.finish_reason) for d in output.deltas] == [
        ("", 0, FinishReason.LENGTH)
    ] * 2
    assert output.timings.first_token is None
    assert len(processor.add_prompt_logprobs(output).prompt_logprobs or ()) == 3


def test_several_outputs_of_a_choice_make_one_delta() -> None:
    processor = OutputProcessor(TOKENIZER, request())
    output = processor.process(
        [token_output([97]), token_output([98]), token_output([99], FinishReason.LENGTH)]
    )
    (delta,) = output.deltas
    assert (delta.text, delta.num_tokens, delta.finish_reason) == ("abc", 3, FinishReason.LENGTH)


def test_numbers_and_times() -> None:
    processor = OutputProcessor(TOKENIZER, request())
    first = processor.process([TokenOutput("r", 0, (97,), None, None, 2, scheduled_time=1.5)])
    assert (first.request_id, first.num_prompt_tokens, first.num_cached_tokens) == ("r", 3, 2)
    assert first.timings.scheduled == 1.5
    assert first.timings.finished is None
    last = processor.process([token_output([98], FinishReason.LENGTH)])
    assert last.timings.first_token == first.timings.first_token is not None
    assert last.timings.finished is not None
    assert last.num_cached_tokens == 5


@pytest.mark.parametrize(
    ("text", "params", "expected"),
    [
        ("a b<call>\n{b}", {"strings": ("\n", "}")}, "a b<call>\n{b}"),
        ("a\nb<call>", {"strings": ("\n",)}, "a"),
        ("a <ca}<call>", {"strings": ("}",)}, "a <ca"),
        ("a<call>b", {"strings": ("<call>b", "l>bc")}, "a<call>b"),
        ("a<call>b", {"strings": ("<call>",)}, "a"),
        (" {b\n}", {"strings": ("\n",), "never_first": "{"}, " {b\n}"),
        ("a{b\n}", {"strings": ("\n",), "never_first": "{"}, "a{b"),
        ("a b<call>\nb", {"strings": ("\n",), "include_stop_str_in_output": True}, "a b<call>\nb"),
        ("ab<call>b", {"strings": ("b",), "min_tokens": 4}, "ab<call>b"),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_no_stop_string_counts_in_a_call(
    text: str, params: dict[str, object], expected: str, size: int
) -> None:
    assert processed(text, size, {"never_after": ("<call>",)} | params) == expected


OPEN = StopScope(("</r>",))
MAYBE = StopScope(("</r>",), unless="<r>")
CHANNELS = StopScope(("[final]", "[say]"), until=("[end]",))


@pytest.mark.parametrize(
    ("text", "params", "expected"),
    [
        ("a\nb</r>\nc", {"scope": OPEN}, "a\nb</r>"),
        ("a\nb</r", {"scope": OPEN}, "a\nb</r"),
        ("<r>a\n</r>b\nc", {"scope": OPEN}, "<r>a\n</r>b"),
        (" \n<r>a\nb</r>c\nd", {"scope": MAYBE}, " \n<r>a\nb</r>c"),
        ("<ra\nb</r>", {"scope": MAYBE}, "<ra"),
        ("\n<r", {"scope": MAYBE}, ""),
        ("ab\n<r>", {"scope": MAYBE}, "ab"),
        ("<r>a</r>b<r>c\nd</r>", {"scope": MAYBE}, "<r>a</r>b<r>c"),
        ("<r>a</r>b", {"scope": MAYBE, "strings": ("</r>", "r>b")}, "<r>a</r>b"),
        ("<r>\n</r>a\n", {"scope": MAYBE, "include_stop_str_in_output": True},
         "<r>\n</r>a\n"),
        ("\n[say]a[end]\n[final]b\nc", {"scope": CHANNELS}, "\n[say]a[end]\n[final]b"),
        ("[say]a\n[end]", {"scope": CHANNELS}, "[say]a"),
        ("[say]ab[end]c[final]c", {"scope": CHANNELS, "strings": ("bc", "]c")},
         "[say]ab[end]c[final]c"),
        ("<call>\n</r>a<call>\n", {"scope": OPEN, "never_after": ("<call>",)},
         "<call>\n</r>a<call>\n"),
        ("<call></r>\n", {"scope": OPEN, "never_after": ("<call>",)}, "<call></r>"),
        ("{</r> {\n}", {"scope": OPEN, "never_first": "{"}, "{</r> {\n}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_no_stop_string_counts_in_reasoning(
    text: str, params: dict[str, object], expected: str, size: int
) -> None:
    assert processed(text, size, {"strings": ("\n",)} | params) == expected


def processed(text: str, size: int, fields: dict[str, object]) -> str:
    """Return the released text when each byte of `text` is a token, with `size` tokens per step.

    `fields` are those of `StopRules` and of `SamplingParams`.
    """
    names = StopRules.__dataclass_fields__
    rules = StopRules(**{name: value for name, value in fields.items() if name in names})
    params = {name: value for name, value in fields.items() if name not in names}
    processor = OutputProcessor(TOKENIZER, request(stop=rules, **params))
    ids = list(text.encode())
    released_text = ""
    for start in range(0, len(ids), size):
        piece = tuple(ids[start : start + size])
        is_last = start + size >= len(ids)
        reason = FinishReason.LENGTH if is_last else None
        output = processor.process([TokenOutput("r", 0, piece, None, reason, 0)])
        released_text += "".join(delta.text for delta in output.deltas)
        if output.finished:
            break
    return released_text
