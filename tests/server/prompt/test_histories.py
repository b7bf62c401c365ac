"""Nothing of a conversation is lost in templates that leave out or refuse parts of some.

Each template has the gaps of a family: it shows one call of a message, no text beside calls, or
no result behind anything but its call.
"""

from functools import cache
from itertools import product
from typing import Any

import pytest

from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions
from stonechat_server.prompt.tool_prompt import with_modern_calls, without_custom_calls
from tests.nightly import one_in
from tests.server.prompt.family_templates import FAMILIES

FIRST_CALL = """\
{%- set last = namespace(name='') %}
{%- for message in messages %}
{%- if message.role == 'assistant' and 'tool_calls' in message %}
{%- if message.content and message.thinking %}{{ raise_exception('not both') }}{% endif %}
{%- set answers = messages[loop.index:] | rejectattr('tool_calls', 'defined') %}
{%- if answers | selectattr('role', 'equalto', 'assistant') | list | length == 0 %}
{{- message.content or message.thinking }}
{%- endif %}
{%- set last.name = message.tool_calls[0].function.name %}
{{- '[call]' + last.name + message.tool_calls[0].function.arguments | tojson }}
{%- elif message.role == 'tool' %}
{%- if not last.name %}{{ raise_exception('no call before the result') }}{% endif %}
{{- '[' + last.name + ']' + message.content }}
{%- else %}{{ '[' + message.role + ']' + message.content }}
{%- endif %}
{%- endfor %}"""
"""Like gpt-oss: the first call only, and text beside it only until an answer follows."""

CALLS_OR_TEXT = """\
{%- for message in messages %}
{%- if message.role == 'assistant' and message.content is none %}
{%- for call in message.tool_calls %}
{{- '[call]' + call.function.name + call.function.arguments }}
{%- endfor %}
{%- else %}{{ '[' + message.role + ']' + message.content }}
{%- endif %}
{%- endfor %}"""
"""Like DeepSeek R1: a message with text shows no calls."""

ALTERNATING = """\
{%- set count = namespace(turns=0) %}
{%- for message in messages if message.role in ('user', 'assistant') %}
{%- if not message.tool_calls %}
{%- if (message.role == 'user') != (count.turns % 2 == 0) %}{{ raise_exception('turns') }}
{%- endif %}
{%- set count.turns = count.turns + 1 %}
{%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '[call]' + call.function.name + call.function.arguments | tojson }}
{%- endfor %}
{%- elif message.role != 'system' %}{{ '[' + message.role + ']' + message.content }}
{%- if loop.index == 2 and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- endif %}
{%- endfor %}"""
"""Like Mistral Nemo: turns alternate, calls are no turns, and text beside them is left out. A
system message is part of a user's."""

LOOKS_AHEAD = """\
{%- for message in messages if message.role != 'tool' %}
{{- '[' + message.role + ']' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '[call]' + call.function.name + call.function.arguments | tojson }}
{%- for result in messages if result.tool_call_id == call.id %}{{ result.content }}{% endfor %}
{%- endfor %}
{%- endfor %}"""
"""Like Gemma 4: results are shown with their calls only."""

LOSSY = {
    "first_call": FIRST_CALL,
    "calls_or_text": CALLS_OR_TEXT,
    "alternating": ALTERNATING,
    "looks_ahead": LOOKS_AHEAD,
}
CALLERS = {name: source for name, source in FAMILIES.items() if "tool_calls" in source} | LOSSY


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str = "", *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": text} | ({"tool_calls": list(calls)} if calls else {})


def call(mark: str) -> dict[str, Any]:
    function = {"name": "read", "arguments": {"path": mark}}
    return {"id": f"call_{mark}", "type": "function", "function": function}


def custom(mark: str) -> dict[str, Any]:
    return {"id": f"call_{mark}", "type": "custom", "custom": {"name": "patch", "input": mark}}


def result(mark: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{mark}", "content": text}


ROUND = [answer("Text-1", call("Call-1")), result("Call-1", "Result-1")]
PAIR = [
    answer("Text-1", call("Call-1"), call("Call-2")),
    *(result("Call-2", "Result-2"), result("Call-1", "Result-1")),
]
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "two calls": [user("User-1"), answer("", *PAIR[0]["tool_calls"]), *PAIR[1:]],
    "text": [user("User-1"), *ROUND],
    "text and two calls": [user("User-1"), *PAIR],
    "an earlier turn": [user("User-1"), *PAIR, answer("Answer-1"), user("User-2")],
    "two rounds": [
        *(user("User-1"), *ROUND, answer("Text-2", call("Call-2")), result("Call-2", "Result-2")),
        *(answer("Answer-1"), user("User-2")),
    ],
    "an answer at the end": [user("User-1"), *ROUND, answer("Answer-1")],
    "text before a call": [user("User-1"), answer("Text-1"), answer("", call("Call-1")), ROUND[1]],
    "no result": [user("User-1"), ROUND[0], user("User-2")],
    "one result of two": [user("User-1"), *PAIR[:2], user("User-2")],
    "a late result": [user("User-1"), ROUND[0], user("User-2"), ROUND[1]],
    "no user at first": [*ROUND, user("User-1"), user("User-2")],
    "two users after a result": [user("User-1"), *ROUND, user("User-2"), user("User-3")],
    "a result at first": [result("Call-1", "Result-1"), user("User-1"), user("User-2")],
    "a result alone": [result("Call-1", "Result-1"), user("User-1"), answer("Answer-1"), user("U")],
    "a custom call": [user("User-1"), answer("Text-1", custom("Call-1")), ROUND[1]],
    "a custom call beside another": [
        *(user("User-1"), answer("Text-1", custom("Call-1"), call("Call-2")), *PAIR[1:]),
    ],
}


def render(source: str, messages: list[dict[str, Any]]) -> str:
    messages = without_custom_calls(with_modern_calls(messages))
    return template_of(source).render(messages, RenderOptions())


@cache
def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """What the prompt must show."""
    found = [message["content"] for message in messages if message["content"]]
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    return found + [call["id"].removeprefix("call_") for call in calls]


@pytest.mark.parametrize("case", one_in(3, product(CALLERS, HISTORIES)), ids=" ".join)
def test_nothing_is_lost(case: tuple[str, str]) -> None:
    family, name = case
    prompt = render(CALLERS[family], HISTORIES[name])
    assert [text for text in texts(HISTORIES[name]) if text not in prompt] == []


def test_each_call_stands_with_its_result() -> None:
    prompt = render(FIRST_CALL, HISTORIES["two calls"])
    assert prompt == (
        '[user]User-1[call]read{"path": "Call-1"}[read]Result-1'
        '[call]read{"path": "Call-2"}[read]Result-2'
    )


def test_text_is_a_message_of_its_own_where_it_would_be_lost() -> None:
    assert render(ALTERNATING, HISTORIES["text"]) == (
        '[user]User-1[assistant]Text-1[call]read{"path": "Call-1"}[tool]Result-1'
    )
    assert render(CALLS_OR_TEXT, HISTORIES["text"]) == (
        '[user]User-1[assistant]Text-1[call]read{"path": "Call-1"}[tool]Result-1'
    )
    assert render(FIRST_CALL, HISTORIES["text"]) == (
        '[user]User-1Text-1[call]read{"path": "Call-1"}[read]Result-1'
    )
    earlier = [*HISTORIES["text"], answer("Answer-1"), user("User-2"), *ROUND]
    assert render(FIRST_CALL, earlier) == (
        '[user]User-1[assistant]Text-1[call]read{"path": "Call-1"}[read]Result-1'
        '[assistant]Answer-1[user]User-2Text-1[call]read{"path": "Call-1"}[read]Result-1'
    )


def test_texts_of_a_turn_are_one_where_turns_must_alternate() -> None:
    prompt = render(ALTERNATING, HISTORIES["two rounds"])
    assert "[tool]Result-2[assistant]Text-1\n\nText-2\n\nAnswer-1[user]User-2" in prompt


def test_a_result_without_its_call_is_told_where_it_would_be_lost() -> None:
    told = '[user]<tool_response name="read">\nResult-1\n</tool_response>'
    assert render(LOOKS_AHEAD, HISTORIES["a late result"]).endswith(f"[user]User-2{told}")
    unnamed = told.replace(' name="read"', "")
    for source in (FIRST_CALL, LOOKS_AHEAD):
        assert render(source, HISTORIES["a result alone"]).startswith(f"{unnamed}[user]User-1")
    both = [result("Call-8", "a"), result("Call-9", "b"), user("User-1")]
    assert render(LOOKS_AHEAD, both).count("[user]") == 2


def test_a_system_message_alone_is_told_where_it_would_be_lost() -> None:
    system = [{"role": "system", "content": "Be brief."}]
    assert render(ALTERNATING, system) == "[user]Be brief."
    refuses = "{{ raise_exception('no user') if messages[-1].role != 'user' }}" + LOOKS_AHEAD
    assert render(refuses, system) == "[user]Be brief."
    assert render(LOOKS_AHEAD, system) == "[system]Be brief."
