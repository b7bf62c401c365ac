"""The scorecard against servers that break the rules one by one."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stonechat_server.cli import main
from stonechat_server.scorecard import command, form, protocol, sampling
from stonechat_server.scorecard.outcome import CHECKS, HONOURED, Check, Finding, Verdict
from stonechat_server.scorecard.report import Scorecard, as_json, details, markdown, rows
from stonechat_server.scorecard.server import Answer, NoAnswerError, Server

Body = dict[str, Any]
Reply = Callable[[Body], Answer]


class Scripted(Server):
    """A server whose answers a function gives."""

    def __init__(self, reply: Reply) -> None:
        self.model, self.reply = "m", reply

    async def post(self, body: object) -> Answer:
        return self.reply(body if isinstance(body, dict) else {})


def plain(text: str = "one two three four", **more: object) -> Answer:
    message = {"role": "assistant", "content": text, **more.pop("message", {})}  # type: ignore[dict-item]
    choice = {"index": 0, "message": message, "finish_reason": "stop", **more}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return Answer(200, {}, json.dumps({"choices": [choice], "usage": usage}))


def error(status: int, **fields: object) -> Answer:
    return Answer(status, {}, json.dumps({"error": fields}))


FULL: Body = {"message": "no", "type": "invalid_request_error", "param": "x", "code": None}


def find(run: Any, reply: Reply) -> Finding:
    return find_with(run, Scripted(reply))


def find_with(run: Any, server: Server) -> Finding:
    return asyncio.run(Check("", "", run).find(server))


def deaf(body: Body) -> Answer:
    """Answers everything with the same text."""
    return plain()


@pytest.mark.parametrize(
    "run",
    [
        *(sampling.max_tokens, sampling.n_choices, sampling.stop, sampling.logit_bias),
        *(sampling.frequency_penalty, sampling.presence_penalty, sampling.logprobs),
        *(sampling.prediction, form.json_object, form.json_schema, form.tool_required),
        *(form.tool_named, form.one_call, protocol.bad_value, protocol.no_messages),
        *(protocol.unknown_model, protocol.unknown_field, protocol.image, protocol.cached),
    ],
)
def test_a_server_that_drops_fields_is_found_out(run: Any) -> None:
    found = find(run, deaf)
    assert found.verdict in (Verdict.IGNORED, Verdict.WRONG), found
    assert found.detail


def test_a_server_that_refuses_is_no_server_that_ignores() -> None:
    def reply(body: Body) -> Answer:
        return error(400, **FULL) if "logit_bias" in body else plain()

    assert find(sampling.logit_bias, reply).verdict is Verdict.REFUSED


def test_the_end_of_an_answer_is_checked() -> None:
    def cut(body: Body, *, reason: str = "stop", kept: str = "one two ") -> Answer:
        return plain(kept if "stop" in body else "one two three four", finish_reason=reason)

    assert find(sampling.stop, cut) == HONOURED
    assert (
        find(sampling.stop, lambda body: cut(body, kept="one two three")).verdict is Verdict.WRONG
    )
    assert find(sampling.stop, lambda body: cut(body, reason="length")).verdict is Verdict.WRONG


def test_equal_seeds_must_agree_and_others_differ() -> None:
    assert find(sampling.seed, lambda body: plain(f"text {body['seed']}")) == HONOURED
    assert find(sampling.seed, deaf).verdict is Verdict.WRONG
    numbers = iter(range(99))
    found = find(sampling.seed, lambda body: plain(f"text {next(numbers)}"))
    assert found.verdict is Verdict.IGNORED


def called(arguments: object, name: str = "cancel_part") -> Answer:
    function = {"name": name, "arguments": json.dumps(arguments)}
    calls = [{"id": "c", "type": "function", "function": function}]
    return plain("", message={"tool_calls": calls}, finish_reason="tool_calls")


def test_a_call_must_name_the_tool_and_follow_its_schema() -> None:
    right = {"code": "zx-41", "count": 5}
    assert find(form.tool_named, lambda body: called(right)) == HONOURED
    assert find(form.tool_named, lambda body: called(right, "order_part")).verdict is Verdict.WRONG
    assert find(form.tool_named, lambda body: called({"code": 1})).verdict is Verdict.WRONG
    assert find(form.tool_none, lambda body: called(right)).verdict is Verdict.WRONG
    assert find(form.tool_none, deaf) == HONOURED


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (error(400, **FULL), Verdict.HONOURED),
        (error(500, **FULL), Verdict.WRONG),
        (error(400, message="no"), Verdict.WRONG),
        (error(400, **{**FULL, "code": 400}), Verdict.WRONG),
        (Answer(400, {}, '{"detail": "no"}'), Verdict.WRONG),
        (Answer(400, {}, "<html>"), Verdict.UNKNOWN),
    ],
)
def test_the_shape_of_an_error(answer: Answer, verdict: Verdict) -> None:
    assert find(protocol.bad_value, lambda body: answer).verdict is verdict


def test_an_ignored_field_may_be_named_in_a_header() -> None:
    answer = Answer(200, {"x-ignored-params": "no_such_field"}, plain().text)
    assert find(protocol.unknown_field, lambda body: answer) == HONOURED


def events(*chunks: Body, end: str = "data: [DONE]\n\n") -> Answer:
    text = "".join(f"data: {json.dumps({'id': 'i', **chunk})}\r\n\r\n" for chunk in chunks)
    return Answer(200, {}, f": ping\n\n{text}{end}")


def delta(text: str, reason: str | None = None, **more: object) -> Body:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return {"choices": [choice], **more}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (events(delta("one two "), delta("three four", "stop")), Verdict.HONOURED),
        (events(delta("one two "), delta("three", "stop")), Verdict.WRONG),
        (events(delta("one two three four")), Verdict.WRONG),
        (events(delta("one two three four", "stop"), end=""), Verdict.WRONG),
        (events(delta("one two "), delta("three four", "stop", id="j")), Verdict.WRONG),
        (events({"error": {"message": "no"}}), Verdict.UNKNOWN),
        (plain(), Verdict.UNKNOWN),
    ],
)
def test_a_stream_must_be_the_plain_answer_in_pieces(answer: Answer, verdict: Verdict) -> None:
    found = find(protocol.stream, lambda body: answer if body.get("stream") else plain())
    assert found.verdict is verdict


def test_usage_comes_last_and_alone() -> None:
    usage = {"usage": {"prompt_tokens": 1}}
    alone = events(delta("a", "stop"), {"choices": [], **usage})
    assert find(protocol.stream_usage, lambda body: alone) == HONOURED
    beside = events(delta("a", "stop", **usage))
    assert find(protocol.stream_usage, lambda body: beside).verdict is Verdict.WRONG
    none = events(delta("a", "stop"))
    assert find(protocol.stream_usage, lambda body: none).verdict is Verdict.IGNORED


def test_another_shape_is_wrong_and_no_crash() -> None:
    for text in ('{"choices": [{"message": {"content": 5}}]}', '{"choices": [null]}', "[]", "{}"):
        for one in CHECKS:
            found = find(one.run, lambda body, text=text: Answer(200, {}, text))  # type: ignore[misc]
            assert isinstance(found, Finding)


def test_a_dead_server_is_unknown() -> None:
    def reply(body: Body) -> Answer:
        raise NoAnswerError("gone")

    assert find(protocol.shape, reply) == Finding(Verdict.UNKNOWN, "gone")


def card(label: str, verdict: Verdict) -> Scorecard:
    return Scorecard(label, "http://x/v1", "m", [Finding(verdict, "why")] * len(CHECKS))


def test_the_reports_show_servers_side_by_side() -> None:
    cards = [card("a", Verdict.HONOURED), card("b", Verdict.IGNORED)]
    table = rows(cards)
    assert table[0] == ["", "check", "a", "b"]
    assert table[1][2:] == ["●", "○"]
    assert ["sum", "○ ignored", "0", str(len(CHECKS))] in table
    assert details(cards[0]) == []
    assert len(details(cards[1])) == len(CHECKS)
    long = Scorecard("c", "", "m", [Finding(Verdict.WRONG, "a\nb" + "c" * 500)] * len(CHECKS))
    assert details(long)[0].endswith("…")
    assert "a bccc" in details(long)[0]
    assert "| form | tool_choice: none | ● | ○ |" in markdown(cards)
    stored = json.loads(as_json(cards))["servers"][1]["checks"][0]
    assert (stored["verdict"], stored["detail"]) == ("ignored", "why")


def test_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def examine(label: str, url: str, options: object) -> Scorecard:
        if url.startswith("http://gone"):
            raise NoAnswerError("no server answers")
        return card(label, Verdict.WRONG if label == "bad" else Verdict.REFUSED)

    monkeypatch.setattr(command, "examine", examine)
    files = ["--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]
    assert main(["check", "one=http://a/v1", "http://b/v1?x=1", *files]) == 0
    output = capsys.readouterr().out
    assert "one" in output
    assert "http://b/v1?x=1" in output
    assert "why" in (tmp_path / "a.md").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["servers"][0]["label"] == "one"
    assert main(["check", "bad=http://a/v1"]) == 1
    assert main(["check", "name="]) == 1
    assert "give NAME=URL" in capsys.readouterr().err
    assert main(["check", "http://gone/v1"]) == 1
    assert "no server answers" in capsys.readouterr().err
