"""Joined deltas of several steps give the same answer in fewer chunks."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stonechat_models import FinishReason, GenerateRequest, LogprobEntry, RequestOutput
from stonechat_models.text.output_processor import join_outputs
from tests.server.bodies import ask, stream
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import FakeEngine, delta, output

CALLS = (
    '<tool_call>\n{"name": "find", "arguments": {"city": "Rome"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "find", "arguments": {"city": "Oslo"}}\n</tool_call>'
)
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
FUNCTION = {"name": "find", "parameters": {"type": "object"}}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Hello wörld, 👋 again", {}),
    ("Hello wörld, 👋 again", {"logprobs": True}),
    ("Hello wörld", {"n": 3, "logprobs": True}),
    ("<think>one two three</think>the answer", {"logprobs": True}),
    ("I call. " + CALLS, {"tools": [TOOL]}),
    (CALLS[: CALLS.index("\n<tool_call>")], {"functions": [FUNCTION]}),
]
Steps = Callable[[GenerateRequest], Sequence[RequestOutput]]


def letters(text: str) -> Steps:
    """One step per character, for each choice, then a step that only ends."""

    def steps(request: GenerateRequest) -> list[RequestOutput]:
        has_logprobs = request.params.top_logprobs is not None
        outputs = []
        for char in (*text, ""):
            finish = None if char else FinishReason.STOP
            entries = (LogprobEntry(1, char, char.encode(), -0.5, ()),) if char else ()
            deltas = [
                delta(char, i, finish, logprobs=entries if has_logprobs else None)
                for i in range(request.params.n)
            ]
            outputs.append(output(request, *deltas, finished=not char, cached=1))
        return outputs

    return steps


def in_groups(steps: Steps, size: int) -> Callable[[GenerateRequest], list[Any]]:
    def script(request: GenerateRequest) -> list[Any]:
        outputs = steps(request)
        groups = [outputs[i : i + size] for i in range(0, len(outputs), size)]
        return [join_outputs(group) for group in groups]

    return script


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    for name in ("id", "created"):
        del answer[name]
    for choice in answer["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            del call["id"]
    return answer


@pytest.mark.parametrize(("text", "fields"), CASES)
@pytest.mark.parametrize("size", [2, 7, 1000])
def test_the_answer_is_the_same(
    text: str, fields: dict[str, Any], size: int, engine: FakeEngine, new_client: ClientFactory
) -> None:
    client = new_client(tool_format="hermes")
    options = {"stream_options": {"include_usage": True}}
    engine.script = in_groups(letters(text), 1)
    plain, one_by_one = ask(client, **fields), stream(client, **fields, **options)
    engine.script = in_groups(letters(text), size)
    assert comparable(ask(client, **fields)) == comparable(plain)
    joined = stream(client, **fields, **options)
    assert folded(joined) == folded(one_by_one)
    assert len(joined) < len(one_by_one)
    assert joined[-1]["usage"] == one_by_one[-1]["usage"]


def folded(chunks: list[Any]) -> dict[Any, Any]:
    """Per choice: the whole text of each kind, the log-probabilities and the finish reason."""
    totals: dict[Any, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            index, parts = choice["index"], choice["delta"]
            for name in ("content", "reasoning", "reasoning_content"):
                totals[index, name] = totals.get((index, name), "") + (parts.get(name) or "")
            for call in parts.get("tool_calls", ()):
                for name in ("name", "arguments"):
                    key = (index, call["index"], name)
                    totals[key] = totals.get(key, "") + call["function"].get(name, "")
            for name, value in parts.get("function_call", {}).items():
                totals[index, name] = totals.get((index, name), "") + value
            logprobs = choice["logprobs"]["content"] if choice["logprobs"] else []
            totals[index, "logprobs"] = totals.get((index, "logprobs"), []) + logprobs
            if choice["finish_reason"]:
                assert not parts
                totals[index, "finish"] = choice["finish_reason"]
    return totals


def test_text_that_waited_is_one_chunk(engine: FakeEngine, new_client: ClientFactory) -> None:
    engine.script = in_groups(letters("Hello"), 1000)
    role, content, finish = stream(new_client())
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert content["choices"][0]["delta"] == {"content": "Hello"}
    assert finish["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize("option", ["continuous_usage_stats", "include_obfuscation"])
def test_chunks_with_their_own_usage_or_obfuscation_are_not_joined(
    option: str, engine: FakeEngine, new_client: ClientFactory
) -> None:
    engine.script = in_groups(letters("Hello"), 1000)
    chunks = stream(new_client(), stream_options={option: True})
    contents = [c["choices"][0]["delta"].get("content") for c in chunks if c["choices"]]
    assert contents == ["", *"Hello", None]
