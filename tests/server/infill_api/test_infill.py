"""`POST /infill`: the prompt, the answer that editors read, and where a text ends."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.infill_api.lines import LineEnds
from stonechat_server.parsers.deltas import ContentDelta, EndDelta
from tests.server.bodies import error_of
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info, text_script

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
REPOSITORY = ("<|repo_name|>", "<|file_sep|>")
FILES = [{"filename": "a.py", "text": "A = 1\n", "time": 1}, {"filename": "b.py", "text": "B"}]
LLAMA_VIM: dict[str, Any] = {
    "model": "",
    "input_prefix": "def f():\n",
    "input_suffix": "\nf()\n",
    "input_extra": FILES,
    "prompt": "    return",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "x"],
}
"""What llama.vim sends."""


def fill(client: TestClient, changes: Mapping[str, Any] | None = None) -> Any:
    response = client.post("/infill", json={**LLAMA_VIM, **(changes or {})})
    assert response.status_code == 200, response.text
    return response


@pytest.fixture
def coder(engine: FakeEngine) -> FakeEngine:
    engine.tokenizer.added_tokens = frozenset({*QWEN, *REPOSITORY})
    engine.script = text_script(" 1")
    return engine


def test_an_editor_gets_what_it_reads(client: TestClient, coder: FakeEngine) -> None:
    response = fill(client)
    answer = response.json()
    assert answer["content"] == " 1"
    assert answer["timings/prompt_n"] == len(coder.requests[0].prompt_token_ids)
    assert answer["timings/predicted_ms"] >= 0
    assert answer.keys() == {"content", "timings/prompt_n", "timings/predicted_ms", "truncated"}
    assert response.headers["X-Ignored-Params"] == "samplers, t_max_prompt_ms"
    params = coder.requests[0].params
    assert (params.max_tokens, params.top_k, params.top_p) == (128, 40, 0.99)


def test_the_prompt_is_that_of_a_repository(client: TestClient, coder: FakeEngine) -> None:
    """As llama.cpp's server writes it. In brackets: what is encoded as ordinary text."""
    fill(client)
    assert coder.prompt == (
        "<|repo_name|>[myproject\n]<|file_sep|>[a.py\nA = 1\n]<|file_sep|>[b.py\nB\n]"
        "<|file_sep|>[filename\n]"
        "<|fim_prefix|>[def f():\n    return]<|fim_suffix|>[\nf()\n]<|fim_middle|>"
    )


def test_files_stand_alone_without_tokens_for_them(client: TestClient, coder: FakeEngine) -> None:
    coder.tokenizer.added_tokens = frozenset(QWEN)
    fill(client)
    assert coder.prompt.startswith("[A = 1\n][B\n]<|fim_prefix|>[def f():")
    fill(client, {"input_extra": [], "input_suffix": "", "n_predict": 0, "samplers": []})
    assert coder.prompt == "<|fim_prefix|>[def f():\n    return]<|fim_suffix|>[]<|fim_middle|>"


def test_files_that_do_not_fit_are_left_out(client: TestClient, coder: FakeEngine) -> None:
    """The first ones, as in llama.cpp: editors send the latest last."""
    files = [{"filename": name, "text": name * 50} for name in "abc"]
    whole = len(fill_prompt(client, coder, files[1:]))
    coder.model = model_info(max_model_len=whole + 8)
    answer = fill(client, {"input_extra": files, "n_predict": 8}).json()
    assert answer["truncated"] is True
    assert len(coder.requests[-1].prompt_token_ids) == whole
    assert "bbb" in coder.prompt
    assert "aaa" not in coder.prompt
    fill(client, {"input_extra": files, "n_predict": -1})
    assert len(coder.requests[-1].prompt_token_ids) <= (whole + 8) * 7 / 8


@pytest.mark.parametrize(
    ("num_before", "num_after", "kept"),
    [(300, 300, (75, 25)), (300, 10, (90, 10)), (20, 300, (20, 80)), (90, 11, (89, 11))],
)
def test_text_far_from_the_gap_is_left_out(
    client: TestClient, coder: FakeEngine, num_before: int, num_after: int, kept: tuple[int, int]
) -> None:
    """As in llama.cpp: the text behind the gap has a quarter, and more if the other is short."""
    marks = "<|fim_prefix|><|fim_suffix|><|fim_middle|>"
    coder.model = model_info(max_model_len=len(coder.tokenizer.encode(marks)) + 100 + 8)
    before, after = "a" * (num_before - 3), "b" * (num_after - 2)
    texts = {"input_prefix": before, "prompt": "z", "input_suffix": after}
    answer = fill(client, {**texts, "input_extra": [], "n_predict": 8}).json()
    assert answer["truncated"] is True
    before, after = f"[{before}z]"[-kept[0] :], f"[{after}]"[: kept[1]]  # with the brackets
    assert coder.prompt == f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>"


def test_props_describe_the_model(client: TestClient, coder: FakeEngine) -> None:
    props = client.get("/props").json()
    assert props["default_generation_settings"] == {"n_ctx": coder.model.max_model_len}
    assert props["total_slots"] == coder.model.max_num_seqs
    assert (props["model_alias"], props["model_path"]) == ("tiny-test", "tiny-test")
    assert props["modalities"] == {"vision": False, "audio": False}
    assert client.get("/props", params={"model": props["model_alias"]}).json() == props
    assert client.get("/props", params={"model": "other"}).status_code == 404


def fill_prompt(client: TestClient, coder: FakeEngine, files: list[Any]) -> list[int]:
    assert fill(client, {"input_extra": files}).json()["truncated"] is False
    return list(coder.requests[-1].prompt_token_ids)


def test_a_whole_answer_and_a_stream_agree(client: TestClient, coder: FakeEngine) -> None:
    coder.script = text_script(" 1\n    # x")
    changes = {"response_fields": None}
    whole = fill(client, changes).json()
    assert (whole["content"], whole["stop"], whole["stop_type"]) == (" 1\n    # x", True, "eos")
    timings = whole["timings"]
    assert timings["prompt_n"] + timings["cache_n"] == whole["tokens_evaluated"]
    lines = fill(client, {**changes, "stream": True}).text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].keys() == whole.keys()


def test_a_model_without_the_tokens_refuses(client: TestClient, engine: FakeEngine) -> None:
    assert isinstance(engine.tokenizer, ByteTokenizer)
    error = error_of(client.post("/infill", json=LLAMA_VIM))
    assert (error["param"], error["code"]) == ("input_suffix", "unsupported_parameter")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_prefix", None),
        ("input_extra", [{}]),
        ("input_extra", [5]),
        ("n_predict", -2),
        ("n_indent", -1),
        ("top_p", 2),
        ("response_fields", "content"),
    ],
)
def test_errors_name_the_field(
    client: TestClient, coder: FakeEngine, field: str, value: Any
) -> None:
    response = client.post("/infill", json={**LLAMA_VIM, field: value})
    assert response.status_code == 400
    assert error_of(response)["param"].startswith(field)


def read(text: str, indent: int, late_after: int | None = None) -> tuple[str, bool]:
    """Read a text at once and by character, and check that both agree. `late_after`: characters."""

    def run(pieces: list[str]) -> tuple[str, bool]:
        now = [0.0]
        parser = LineEnds(indent, 0.0 if late_after is None else late_after - 1.5, lambda: now[0])
        now[0] = 100.0  # the prompt took long
        deltas = []
        for piece in [*pieces, ""]:
            now[0] += 1
            deltas += parser.feed(piece, finished=piece == "")
            if deltas and isinstance(deltas[-1], EndDelta):
                break
        written = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
        return written, isinstance(deltas[-1], EndDelta) if deltas else False

    by_character = run(list(text))
    assert late_after is not None or run([text]) == by_character
    return by_character


@pytest.mark.parametrize(
    ("text", "indent", "expected"),
    [
        (" 1", 4, (" 1", False)),
        (" 1\n    x\n\n     y\n", 4, (" 1\n    x\n\n     y\n", False)),
        (" 1\n\n\ndef g():\n    pass", 4, (" 1", True)),
        (" 1\n  x", 2, (" 1\n  x", False)),
        (" 1\n \n x", 2, (" 1", True)),
        (" 1\n\tx", 1, (" 1\n\tx", False)),
        ("\n\nx", 0, ("\n\nx", False)),
        ("", 4, ("", False)),
    ],
)
def test_a_text_ends_before_a_line_that_is_indented_less(
    text: str, indent: int, expected: tuple[str, bool]
) -> None:
    assert read(text, indent) == expected


def test_a_text_ends_after_its_time_once_it_has_a_line() -> None:
    assert read("abcdef", 0, late_after=3) == ("abcdef", False)
    assert read("a\nbcdef", 0, late_after=4) == ("a\nbc", True)


def test_the_limit_of_lines_is_named(client: TestClient, coder: FakeEngine) -> None:
    coder.script = text_script(" 1\ndef g(): pass")
    answer = fill(client, {"response_fields": None}).json()
    assert (answer["content"], answer["stop_type"]) == (" 1", "limit")
