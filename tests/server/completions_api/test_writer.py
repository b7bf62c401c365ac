"""The writer, on outputs of the engine that are made by hand."""

import json
from typing import Any

import msgspec
import pytest

from stonechat_models import FinishReason, GenerateRequest, RequestOutput, SamplingParams
from stonechat_server.completions_api.collect import CompletionCollector
from stonechat_server.completions_api.prompts import Prompt
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.completions_api.writer import CompletionWriter
from stonechat_server.streaming.answer_reader import AnswerReader, ChoiceState
from stonechat_server.streaming.answer_writer import CompletionHead
from tests.server.completions_api.bodies import entry, fold
from tests.server.fake_engine import delta, output

HEAD = CompletionHead(id="cmpl-1", created=1, model="m", system_fingerprint="f")


def request_of(prompt: str) -> GenerateRequest:
    return GenerateRequest(request_id=prompt, prompt_token_ids=[1, 2], params=SamplingParams())


def prompt(text: str, *pieces: bytes, hidden: int = 0) -> Prompt:
    ids = [500 + i for i in range(len(pieces))]
    return Prompt(
        path="prompt", token_ids=ids, text=text, num_hidden=hidden, token_bytes=list(pieces)
    )


def writer_of(*prompts: Prompt, **fields: Any) -> tuple[CompletionWriter, CompletionRequest]:
    request = CompletionRequest.model_validate(fields)
    choices = [ChoiceState(None) for _ in range(len(prompts) * request.num_samples)]
    reader = AnswerReader(choices, [p.text for p in prompts])
    return CompletionWriter(HEAD, reader, request, prompts), request


def scored(*pieces: bytes) -> tuple[Any, ...]:
    later = [entry(500 + i, piece, -float(i), 1) for i, piece in enumerate(pieces)]
    return (None, *later[1:])


def play(writer: CompletionWriter, *outputs: RequestOutput) -> list[Any]:
    """The chunks as JSON."""
    chunks = [chunk for item in outputs for chunk in writer.add(item)]
    return [json.loads(msgspec.json.encode(chunk)) for chunk in chunks]


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_tokenizer_may_drop_the_first_space(hidden: int) -> None:
    """SentencePiece shows " a" as "a" at the start of a text, and only there."""
    pieces = [b" a", b" b"] if not hidden else [b"<s>", b" a", b" b"]
    writer, _ = writer_of(prompt("a b", *pieces, hidden=hidden), echo=True, logprobs=0, stream=True)
    token = delta(" c", finish=FinishReason.LENGTH, logprobs=(entry(7, b" c", -1.0, 0),))
    scores = scored(*pieces)
    first = msgspec.structs.replace(
        output(request_of("a b"), token, finished=True), prompt_logprobs=scores
    )
    (choice,) = fold(play(writer, first))
    assert choice["text"] == "a b c"
    assert choice["logprobs"]["text_offset"] == [0] * hidden + [0, 1, 3]
    assert choice["logprobs"]["tokens"] == [piece.decode() for piece in pieces] + [" c"]


def test_a_text_that_begins_may_have_dropped_its_space() -> None:
    writer, _ = writer_of(prompt("", b"<s>", hidden=1), logprobs=0, stream=True)
    pieces = [(" a", "a"), (" b", " b")]
    deltas = [
        delta(text, logprobs=(entry(i, data.encode(), -1.0, 0),))
        for i, (data, text) in enumerate(pieces)
    ]
    end = delta(finish=FinishReason.STOP, logprobs=())
    outputs = [output(request_of(""), d) for d in deltas]
    (choice,) = fold(play(writer, *outputs, output(request_of(""), end, finished=True)))
    assert choice["text"] == "a b"
    assert choice["logprobs"]["text_offset"] == [0, 1]


def test_outputs_that_waited_become_one_chunk() -> None:
    writer, _ = writer_of(prompt("p", b"p"), logprobs=0, stream=True)
    deltas = [
        delta("a", logprobs=(entry(1, b"a", -1.0, 0),)),
        delta("é", logprobs=(entry(2, b"\xc3", -1.0, 0), entry(3, b"\xa9", -1.0, 0))),
        delta("", finish=FinishReason.LENGTH, logprobs=(entry(4, b"\xe2", -1.0, 0),)),
    ]
    chunks = play(writer, output(request_of("p"), *deltas, finished=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["aé", ""]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [body["text_offset"] for body in logprobs] == [[0, 1, 1], [2]]
    assert logprobs[1]["tokens"] == ["bytes:\\xe2"]


def test_prompts_that_run_at_once_do_not_mix() -> None:
    writer, request = writer_of(
        prompt("p", b"p"), prompt("q", b"q"), echo=True, logprobs=1, n=2, prompt=["p", "q"]
    )
    collector = CompletionCollector(HEAD, request)
    for name in ("q", "p"):  # the second prompt is faster
        texts = [
            delta(name * 2, i, logprobs=(entry(i, name.encode() * 2, -1.0, 1),)) for i in (1, 0)
        ]
        first = output(request_of(name), *texts)
        for event in writer.add(msgspec.structs.replace(first, prompt_logprobs=(None,))):
            collector.add(event)
    for name in ("p", "q"):
        ends = [delta("", i, FinishReason.LENGTH, logprobs=()) for i in (0, 1)]
        for event in writer.add(output(request_of(name), *ends, finished=True)):
            collector.add(event)
    answer = collector.answer()
    assert [choice.text for choice in answer.choices] == ["ppp", "ppp", "qqq", "qqq"]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == [choice.text[0], choice.text[1:]]
        assert choice.logprobs.text_offset == [0, 1]


def test_the_choices_of_a_prompt_share_what_they_repeat_of_it() -> None:
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 1, "return_token_ids": True, "n": 3}
    writer, request = writer_of(prompt("pq", b"p", b"q"), prompt=["pq"], **fields)
    collector = CompletionCollector(HEAD, request)
    ends = [delta("x", i, FinishReason.LENGTH, logprobs=()) for i in range(3)]
    first = output(request_of("pq"), *ends, finished=True)
    events = writer.add(msgspec.structs.replace(first, prompt_logprobs=scored(b"p", b"q")))
    begun = [
        event.choices[0] for event in events if event.choices and event.choices[0].text == "pq"
    ]
    assert [choice.index for choice in begun] == [0, 1, 2]
    for name in ("logprobs", "prompt_logprobs", "prompt_token_ids"):
        first_one, *others = [getattr(choice, name) for choice in begun]
        assert first_one
        assert all(other is first_one for other in others)
    before = msgspec.json.encode(begun[0])
    for event in events:
        collector.add(event)
    assert [choice.text for choice in collector.answer().choices] == ["pqx"] * 3
    assert msgspec.json.encode(begun[0]) == before
    assert not writer.reader.prompt_logprobs  # which need much memory


def test_the_chosen_token_is_among_the_likely_ones_once() -> None:
    writer, _ = writer_of(prompt("p", b"p"), logprobs=2, stream=True)
    best = entry(1000, b"x", -0.25, 2)  # the likeliest alternative itself
    chunks = play(writer, output(request_of("p"), delta("x", logprobs=(best,))))
    top = chunks[0]["choices"][0]["logprobs"]["top_logprobs"]
    assert top == [{"x": -0.25, "bytes:\\xc3": -1.25}]


def test_a_choice_without_tokens_is_never_the_best() -> None:
    writer, request = writer_of(prompt("p", b"p"), best_of=2)
    collector = CompletionCollector(HEAD, request)
    said = delta("a", 1, FinishReason.STOP, logprobs=(entry(1, b"a", -9.0, 0),))
    nothing = delta("", 0, FinishReason.STOP, logprobs=())
    for event in writer.add(output(request_of("p"), nothing, said, finished=True)):
        collector.add(event)
    (choice,) = collector.answer().choices
    assert (choice.text, choice.index, choice.logprobs) == ("a", 0, None)
