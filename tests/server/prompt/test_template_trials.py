"""What trial renders find out about templates, and where the server's own text goes."""

from typing import Any

import pytest

from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions
from stonechat_server.prompt.template_trials import TemplateTrials
from tests.server.fake_engine import CHATML
from tests.server.prompt.family_templates import (
    CHATML_REASONING,
    DOCUMENTS,
    FAMILIES,
    JOINED_ARGUMENTS,
    NO_SYSTEM,
    SINGLE_CALLS,
    STRICT_IDS,
    TAGGED_ARGUMENTS,
    THINKING_ONLY,
)
from tests.server.prompt.test_histories import (
    ALTERNATING,
    CALLS_OR_TEXT,
    FIRST_CALL,
    LOOKS_AHEAD,
)

DROPS_SYSTEM = (
    "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
OWN_DEFAULT = (
    """\
{%- if messages[0].role != 'system' %}<|im_start|>system
You are a helpful default.<|im_end|>
{% endif %}"""
    + CHATML
)
AS_PYTHON = (
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments }}{% endfor %}{% endfor %}"
)
CALLS_WITHOUT_CONTENT = """\
{%- for m in messages %}[{{ m.role }}]
{%- if m.role == 'assistant' and m.content is none %}
{%- for c in m.tool_calls %}{{ c.function.name + '(' + c.function.arguments + ')' }}{% endfor %}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""
NEEDS_TOOLS = "{% for t in tools %}{{ t.function.name }}{% endfor %}" + CHATML
BROKEN = "{{ 1 / 0 }}"
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ADDED = 'Answer with JSON: {"a": "<b>"}'


def trials(source: str) -> TemplateTrials:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template._trials


def render(source: str, *messages: dict[str, Any], added_text: str = ADDED) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, RenderOptions(added_text=added_text))


@pytest.mark.parametrize(
    ("source", "takes", "keeps"),
    [
        (CHATML, True, True),
        (OWN_DEFAULT, True, False),
        (STRICT_IDS, True, False),
        (SINGLE_CALLS, True, True),
        (THINKING_ONLY, True, True),
        (JOINED_ARGUMENTS, True, True),
        (NO_SYSTEM, False, True),
        (DROPS_SYSTEM, False, True),
        (NEEDS_TOOLS, True, True),
        (BROKEN, True, True),
    ],
)
def test_system_messages(source: str, takes: bool, keeps: bool) -> None:
    found = trials(source)
    assert (found.takes_system, found.keeps_default_system) == (takes, keeps)


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        (CHATML, True),
        (CHATML_REASONING, True),
        (DOCUMENTS, True),
        (SINGLE_CALLS, False),
        (STRICT_IDS, False),
        (THINKING_ONLY, True),
        (JOINED_ARGUMENTS, False),
        (NO_SYSTEM, False),
    ],
)
def test_later_system_messages(source: str, takes: bool) -> None:
    assert trials(source).takes_later_system == takes


@pytest.mark.parametrize(
    ("source", "arguments", "shows_several"),
    [
        (CHATML_REASONING, "object", True),
        (TAGGED_ARGUMENTS, "object", True),
        (SINGLE_CALLS, "object", False),
        (STRICT_IDS, "object", True),
        (JOINED_ARGUMENTS, "text", True),
        (AS_PYTHON, "text", True),
        (CALLS_WITHOUT_CONTENT, "text", True),
        (NO_SYSTEM, "unknown", True),
    ],
)
def test_calls(source: str, arguments: str, shows_several: bool) -> None:
    found = trials(source)
    assert (found.arguments, found.shows_several_calls) == (arguments, shows_several)


@pytest.mark.parametrize(
    ("source", "text", "earlier_text", "lone_results"),
    [
        (CHATML_REASONING, "kept", "kept", True),
        (SINGLE_CALLS, "apart", "apart", True),
        (NO_SYSTEM, "lost", "lost", False),
        (BROKEN, "lost", "lost", False),
        (FIRST_CALL, "kept", "apart", False),
        (CALLS_OR_TEXT, "apart", "apart", True),
        (ALTERNATING, "apart", "lost", True),
        (LOOKS_AHEAD, "kept", "kept", False),
    ],
)
def test_what_stands_around_calls(
    source: str, text: str, earlier_text: str, lone_results: bool
) -> None:
    found = trials(source)
    assert (found.text_beside_calls, found.text_beside_earlier_calls) == (text, earlier_text)
    assert found.takes_lone_results == lone_results


def test_a_template_may_show_calls_only_where_content_is_null() -> None:
    assert trials(CALLS_WITHOUT_CONTENT).call_content is None
    assert trials(CHATML_REASONING).call_content == trials(CHATML).call_content == ""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    for content in ({}, {"content": ""}, {"content": None}):
        answer = {"role": "assistant", "tool_calls": [call], **content}
        prompt = render(CALLS_WITHOUT_CONTENT, USER, answer, added_text="")
        assert prompt == '[user]Hi[assistant]f({"a": 1})'


def test_a_trial_is_rendered_once() -> None:
    rendered = []
    found = TemplateTrials(lambda messages, tools: str(rendered.append(messages)))
    for _ in range(3):
        assert not found.takes_system
        assert found.keeps_default_system
    assert len(rendered) == 2


@pytest.mark.parametrize("source", [CHATML, SINGLE_CALLS, THINKING_ONLY, JOINED_ARGUMENTS])
def test_added_text_is_a_system_message_where_none_is_displaced(source: str) -> None:
    assert render(source, USER) == render(
        source, {"role": "system", "content": ADDED}, USER, added_text=""
    )


@pytest.mark.parametrize("source", [OWN_DEFAULT, STRICT_IDS])
def test_added_text_leaves_the_default_system_text_in_its_place(source: str) -> None:
    prompt = render(source, USER)
    assert "You are a helpful default." in prompt
    with_text = {"role": "user", "content": f"{ADDED}\n\nHi"}
    assert prompt == render(source, with_text, added_text="")
    own = render(source, SYSTEM, USER)
    assert f"Be brief.\n\n{ADDED}" in own
    assert "default" not in own


@pytest.mark.parametrize("source", [NO_SYSTEM, DROPS_SYSTEM])
def test_without_a_system_role_all_text_goes_before_the_users(source: str) -> None:
    with_text = {"role": "user", "content": f"{ADDED}\n\nHi"}
    assert render(source, USER) == render(source, with_text, added_text="")
    both = {"role": "user", "content": f"Be brief.\n\n{ADDED}\n\nHi"}
    assert render(source, SYSTEM, USER) == render(source, both, added_text="")
    own = {"role": "user", "content": "Be brief.\n\nHi"}
    assert render(source, SYSTEM, USER, added_text="") == render(source, own, added_text="")
    alone = {"role": "user", "content": "Be brief."}
    assert render(source, SYSTEM, added_text="") == render(source, alone, added_text="")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [SYSTEM, SYSTEM | {"content": "Be kind."}, USER],
        [USER, {"role": "assistant", "content": "Hello"}, SYSTEM | {"content": "Be kind."}, USER],
    ],
)
def test_no_text_is_lost(family: str, messages: list[dict[str, Any]]) -> None:
    prompt = render(FAMILIES[family], *messages)
    assert prompt.count(ADDED) == 1
    for message in messages:
        assert message["content"] in prompt
