"""`truncation: "auto"`."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from stonechat_server.app import create_app
from stonechat_server.settings import Settings
from tests.server.bodies import error_of
from tests.server.fake_engine import ByteTokenizer, FakeEngine, model_info
from tests.server.responses_api.answers import ask, post

SYSTEM = {"role": "system", "content": "the rules"}
CONTEXT = 4096


def turn(i: int) -> list[dict[str, Any]]:
    call = {"type": "function_call", "call_id": f"c{i}", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": f"c{i}", "output": f"result {i} " * 20}
    return [{"role": "user", "content": f"question {i} " * 20}, call, result]


@pytest.mark.parametrize("num_turns", [7, 8, 17, 40])
@pytest.mark.parametrize(("limit", "room"), [(None, 1024), (100, 100), (4000, 1024)])
def test_the_oldest_messages_are_left_out(
    client: TestClient, engine: FakeEngine, num_turns: int, limit: int | None, room: int
) -> None:
    items = [item for i in range(num_turns) for item in turn(i)]
    given = [items[0], SYSTEM, *items[1:]]
    assert post(client, input=given).status_code == (400 if num_turns > 7 else 200)
    ask(client, input=given, truncation="auto", max_output_tokens=limit)
    prompt, num_tokens = engine.prompt, len(engine.requests[-1].prompt_token_ids)
    assert "the rules" in prompt
    assert f"result {num_turns - 1} " in prompt
    assert num_tokens + room <= CONTEXT
    if "question 0 " not in prompt:
        assert num_tokens + room > CONTEXT - 400  # nothing more than needed is left out
    for i in range(num_turns):
        assert (f"result {i} " in prompt) == (f"(c{i})" in prompt)
    kept = [f"question {i} " in prompt for i in range(num_turns)]
    assert kept == sorted(kept)


ALTERNATING = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('No turn.') }}
{%- endif %}[{{ message.role }}]{{ message.content }}
{%- endfor %}"""
ANY_ORDER = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
USER_FIRST = """\
{%- if messages[0].role != 'user' or not messages[0].content.strip() %}
{{- raise_exception('No user.') }}{% endif %}
{%- for message in messages %}[{{ message.role }}]{{ message.content }}
{%- endfor %}"""
"""Also refuses the turn that is filled in where one is missing."""


def strict_client(template: str) -> tuple[TestClient, FakeEngine]:
    engine = FakeEngine(
        tokenizer=ByteTokenizer(chat_template=template), model=model_info(max_model_len=600)
    )
    return TestClient(create_app(Settings(), engine), "http://127.0.0.1:8000"), engine


def chat(num_messages: int) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": f"{i}." + "x" * 88} for i in range(num_messages)]


@pytest.mark.parametrize("template", [ALTERNATING, USER_FIRST])
@pytest.mark.parametrize("num_messages", [5, 7, 9, 15])
def test_a_user_message_stays_first(template: str, num_messages: int) -> None:
    client, engine = strict_client(template)
    with client:
        ask(client, input=chat(num_messages), truncation="auto", max_output_tokens=50)
    assert engine.prompt.startswith(f"[user]{num_messages - 5}.")
    assert f"{num_messages - 1}." in engine.prompt


def test_finer_cuts_come_last() -> None:
    """Without a later user message, calls go one by one, if the template takes what is left."""
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "r" * 150}
    loop = [*chat(1), *[call, result] * 9]
    client, engine = strict_client(ANY_ORDER)
    with client:
        ask(client, input=loop, truncation="auto", max_output_tokens=50)
    assert engine.prompt.startswith("[assistant]")
    assert 400 < len(engine.prompt) <= 550
    client, engine = strict_client(USER_FIRST)
    with client:
        error = error_of(post(client, input=loop, truncation="auto", max_output_tokens=50))
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
        result["output"] = "r" * 130  # fits, but leaves little room for the answer
        ask(client, input=[*chat(1), *[call, result] * 2], truncation="auto")
    assert engine.prompt.startswith("[user]")


def test_what_is_refused_as_a_whole_is_not_cut() -> None:
    client, _ = strict_client(USER_FIRST)
    with client:
        error = error_of(post(client, input=chat(4)[1:], truncation="auto"))
    assert (error["param"], error["code"]) == ("input", "chat_template_error")


def test_what_fits_is_not_changed(client: TestClient, engine: FakeEngine) -> None:
    ask(client, input=turn(0), truncation="disabled")
    expected = engine.prompt
    ask(client, input=turn(0), truncation="auto")
    assert engine.prompt == expected


def test_the_last_message_stays(client: TestClient, engine: FakeEngine) -> None:
    items = [*turn(0), {"role": "user", "content": "x" * 4000}]
    ask(client, input=items, truncation="auto")
    assert engine.prompt.count("<|im_start|>") == 2
    items[-1] = {"role": "user", "content": "x" * 5000}
    for given in (items, items[-1:]):
        error = error_of(post(client, input=given, truncation="auto"))
        assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
