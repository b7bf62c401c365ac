"""Messages that a template refuses or cannot render are rewritten once."""

import json
from typing import Any

import pytest
from jinja2 import Template

from stonechat_server.errors import APIError
from stonechat_server.prompt.call_repairs import with_single_calls
from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions
from stonechat_server.prompt.template_messages import to_arguments
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

USER = {"role": "user", "content": "Hi"}
BROKEN = ['{"path": "/tm', "[1, 2]", "3", "", "null", '"x"', "no JSON"]
CALLERS = [name for name, source in FAMILIES.items() if "tool_calls" in source]
NAMES = ("reasoning_content", "reasoning", "thinking")


def render(source: str, *messages: dict[str, Any], **options: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    return template.render(messages, RenderOptions(**options))


def call(arguments: object = (), call_id: str = "abcdefgh1", name: str = "read") -> dict[str, Any]:
    function = {"name": name, "arguments": arguments or {}}
    return {"id": call_id, "type": "function", "function": function}


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


def result(call_id: str = "abcdefgh1", content: str = "found") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "name": "read", "content": content}


@pytest.mark.parametrize("family", CALLERS)
@pytest.mark.parametrize("text", BROKEN)
def test_a_call_without_an_object_is_shown_anyway(family: str, text: str) -> None:
    arguments = to_arguments(text)
    prompt = render(FAMILIES[family], USER, answer(tool_calls=[call(arguments)]), result())
    assert "read" in prompt
    assert "found" in prompt
    assert not arguments or text in prompt or json.dumps(text) in prompt


def test_broken_arguments_go_under_one_key_where_keys_are_needed() -> None:
    prompt = render(TAGGED_ARGUMENTS, USER, answer(tool_calls=[call('{"path": "/tm')]), result())
    assert '<parameter=arguments>\n{"path": "/tm\n</parameter>' in prompt


def test_broken_arguments_are_shown_where_a_template_leaves_them_out() -> None:
    """Like GLM 4.6."""
    guarded = "(call.function.arguments if call.function.arguments is mapping else {}) | items"
    source = TAGGED_ARGUMENTS.replace("call.function.arguments | items", guarded)
    assert guarded in source
    for text in ('{"path": "/tm', '["/tm"]', "/tm"):
        prompt = render(source, USER, answer(tool_calls=[call(text)]), result())
        assert f"<parameter=arguments>\n{text}\n</parameter>" in prompt


def count_renders(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    plain_render = Template.render

    def counting(self: Template, variables: dict[str, Any]) -> str:
        counts.append(len(variables["messages"]))
        return plain_render(self, variables)

    monkeypatch.setattr(Template, "render", counting)
    return counts


@pytest.mark.parametrize("family", CALLERS)
def test_a_long_history_is_rendered_twice_at_most(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = answer(tool_calls=[call('{"path": "/tm', "call_1")])
    history = [USER, *(cut, result("call_1")) * 200]
    counts = count_renders(monkeypatch)
    assert render(FAMILIES[family], *history).count("read") >= 200
    assert 1 <= sum(count > 300 for count in counts) <= 2


def test_a_template_that_always_fails_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_renders(monkeypatch)
    for source in ("{{ messages[0].content + 1 }}", "{{ raise_exception('never') }}"):
        counts.clear()
        with pytest.raises(APIError) as error_info:
            render(source, *[USER, answer(content="Hello")] * 10)
        assert error_info.value.code == "chat_template_error"
        assert counts.count(20) == 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fields", [{}, {"content": ""}, {"content": None}, {"tool_calls": []}])
def test_an_empty_answer_does_not_end_the_conversation(family: str, fields: dict[str, Any]) -> None:
    prompt = render(FAMILIES[family], USER, answer(**fields), {**USER, "content": "Still there?"})
    assert "Still there?" in prompt


def test_ids_become_nine_characters_where_the_template_demands_it() -> None:
    long = "call_0123456789"
    messages = [
        USER,
        answer(tool_calls=[call(call_id=long), call(call_id="abcdefgh1")]),
        result(long),
        result(),
    ]
    prompt = render(STRICT_IDS, *messages)
    assert long not in prompt
    new_id = prompt.partition("[CALL_ID]")[2][:9]
    assert new_id.isalnum()
    assert f"[TOOL_RESULTS]{new_id}[TOOL_CONTENT]found" in prompt
    assert prompt.count("abcdefgh1") == 2
    assert prompt == render(STRICT_IDS, *messages)
    assert long in render(CHATML_REASONING + "{{ messages[1].tool_calls[0].id }}", *messages)


def test_calls_get_messages_of_their_own_where_the_template_takes_one() -> None:
    calls = [call({"n": n}, f"id{n}") for n in range(3)]
    results = [result(f"id{n}", f"found {n}") for n in (2, 0, 1)]
    prompt = render(SINGLE_CALLS, USER, answer(content="", tool_calls=calls), *results, USER)
    shown = [prompt.index(text) for n in range(3) for text in (f'{{"n": {n}}}', f"found {n}")]
    assert shown == sorted(shown)
    unknown = render(SINGLE_CALLS, USER, answer(tool_calls=calls), result("other", "lost"))
    assert "lost" in unknown


def test_many_calls_find_their_results_at_once() -> None:
    num_compared = 0

    class Id(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal num_compared
            num_compared += 1
            return str(self) == other

    numbers = range(100)
    calls = [call({"n": n}, Id(f"id{n}")) for n in numbers]
    results = [result(Id(f"id{n}")) for n in reversed(numbers)]
    split = with_single_calls([answer(tool_calls=calls), *results])
    assert num_compared <= 10 * len(calls)
    assert [message["role"] for message in split] == ["assistant", "tool"] * len(calls)
    assert [str(message["tool_call_id"]) for message in split[1::2]] == [f"id{n}" for n in numbers]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reads", NAMES)
def test_reasoning_has_all_names(name: str, reads: str) -> None:
    source = f"{{% for m in messages %}}[{{{{ m.{reads} }}}}]{{% endfor %}}"
    assert render(source, USER, answer(content="Hello", **{name: "hm"})) == "[][hm]"


def test_a_name_with_a_text_keeps_it() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}{% endfor %}"
    assert render(source, answer(reasoning="a", thinking="b")) == "a|b"
    assert render(source, answer(reasoning_content=None, thinking="b")) == "b|b"
    assert render(source, answer(reasoning_content="", thinking="b")) == "b|b"


def test_reasoning_goes_where_the_template_refuses_it() -> None:
    both = answer(content="I look.", reasoning_content="hm", tool_calls=[call({"a": 1})])
    prompt = render(THINKING_ONLY, USER, both, result())
    assert "analysis<|message|>hm\n\nI look.<|end|>" in prompt
    assert "analysis<|message|>hm<|end|>" in render(
        THINKING_ONLY, USER, {**both, "content": ""}, result()
    )


def test_turns_of_one_role_are_joined_where_the_template_refuses_them() -> None:
    prompt = render(NO_SYSTEM, USER, USER, answer(content="a"), answer(content="b"), USER)
    assert prompt.count("<start_of_turn>user") == 2
    assert "Hi\n\nHi<end_of_turn>" in prompt
    assert "a\n\nb<end_of_turn>" in prompt
    assert render(DOCUMENTS, USER, USER) == "[USER]Hi[USER]Hi[A]"


def test_a_missing_turn_is_filled_in_where_turns_must_alternate() -> None:
    """As Mistral's templates count them: without results, and without answers that only call."""
    source = "{% set turns = messages | rejectattr('role', 'equalto', 'tool') | rejectattr("
    source += "'tool_calls', 'defined') | list %}{% for m in turns %}{% if (m.role == 'user') != "
    source += "(loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    source += "[{{ m.content }}]{% endfor %}"
    again = {"role": "user", "content": "Again"}
    assert render(source, USER, answer(tool_calls=[call({})]), result(), again) == "[Hi][ ][Again]"
    assert render(source, answer(content="Welcome!"), again) == "[ ][Welcome!][Again]"
    assert render(source, answer(content=""), again) == "[ ][ ][Again]"


def test_no_turn_is_filled_in_behind_a_later_system_message() -> None:
    """A template that refuses something else, such as ids, would refuse two user turns as well."""
    source = "{% for m in messages %}{% if m.tool_calls and m.tool_calls[0].id | length != 9 %}"
    source += "{{ raise_exception('nine letters') }}{% endif %}[{{ m.content }}]{% endfor %}"
    later = {"role": "system", "content": "Be brief."}
    calls = answer(tool_calls=[call({}, "x")], content="Ok")
    assert render(source, USER, later, calls) == "[Hi][Be brief.][Ok]"


def test_tools_get_the_keys_that_a_template_reads_without_asking() -> None:
    source = "{% for t in tools %}{{ t.function.name + ': ' + t.function.description }}{% endfor %}"
    tools = [{"type": "function", "function": {"name": "now"}}, {"type": "other"}]
    assert render(source, USER, tools=tools[:1]) == "now: "
    source = "{% for t in tools %}{% for n, p in t.function.parameters.properties.items() %}"
    source += "{{ n + ': ' + p.type + p.description }}{% endfor %}{% endfor %}"
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}}
    tools[0] = {"type": "function", "function": {"name": "now", "parameters": schema}}
    assert render(source, USER, tools=tools[:1]) == "a: stringb: any"
    needs_list = "{{ tools | length }} {{ documents | length }}"
    assert render(needs_list, USER) == "0 0"
    assert render("{{ tools[1].type + 1 if tools }}{{ tools is none }}", USER) == "True"
    with pytest.raises(APIError, match="cannot render"):
        render(source, USER, tools=tools)


def test_arguments_are_written_as_json_not_as_python_shows_them() -> None:
    source = "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    source += "{{ c.function.arguments }}{% endfor %}{% endfor %}"
    assert render(source, USER, answer(tool_calls=[call({"a": [None, "é"]})])) == (
        '{"a": [null, "é"]}'
    )
    assert render(JOINED_ARGUMENTS, USER, answer(tool_calls=[call({"a": 1}), call("{")])).endswith(
        '<|sep|>{"a": 1}<|call end|><|call|>read<|sep|>{<|call end|></s><|Assistant|>'
    )
