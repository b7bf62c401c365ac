"""Conversations that clients send back, whole, over HTTP."""

from typing import Any

import pytest

from tests.server.bodies import ask, post
from tests.server.conftest import ClientFactory
from tests.server.fake_engine import ByteTokenizer, FakeEngine, text_script
from tests.server.prompt.family_templates import (
    CHATML_REASONING,
    FAMILIES,
    NO_SYSTEM,
    SINGLE_CALLS,
    STRICT_IDS,
    TAGGED_ARGUMENTS,
    THINKING_ONLY,
)

USER = {"role": "user", "content": "Hi"}
BYE = {"role": "user", "content": "Bye"}
TOOL = {"type": "function", "function": {"name": "read", "description": "Reads."}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
DUMP = {
    "role": "assistant",
    "content": "Hello",
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": [],
    "reasoning_content": None,
    "parsed": None,
}


def use(engine: FakeEngine, template: str) -> None:
    special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    engine.tokenizer = ByteTokenizer(chat_template=template, special_tokens=special_tokens)


def call(arguments: object, call_id: object = "call_1") -> dict[str, Any]:
    function = {"name": "read", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def calling(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def result(call_id: object = "call_1", content: object = "found") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_answer_gives_the_prompt_of_its_text(
    family: str, new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, FAMILIES[family])
    client = new_client()
    prompts = []
    for answer in ({"role": "assistant", "content": "Hello"}, DUMP):
        ask(client, messages=[USER, answer, BYE])
        prompts.append(engine.prompt)
    assert prompts[0] == prompts[1]
    assert "Hello" in prompts[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "messages",
    [
        [calling(call('{"path": "/tm')), result()],
        [calling(call(None)), result(content=None)],
        [calling(call({"path": "x"}, None)), result(None, {"found": [1]})],
        [calling(call("{}", ""), call("[]", "")), result(""), result("", ["found"])],
        [calling(call("3"), reasoning="hm", content="I look."), result()],
        [calling(call("{}"), content=[{"type": "text", "text": "I look."}]), result(), DUMP],
        [calling(call("{}")), result(content=[{"type": "text", "text": "found"}]), DUMP, BYE],
    ],
)
def test_calls_of_any_form_are_shown(
    family: str,
    messages: list[dict[str, Any]],
    new_client: ClientFactory,
    engine: FakeEngine,
) -> None:
    use(engine, FAMILIES[family])
    client = new_client()
    for fields in ({}, {"tools": [TOOL]}):
        ask(client, messages=[USER, *messages], **fields)
        after_user = engine.prompt.partition("Hi")[2]
        assert "read" in after_user


def test_a_cut_call_is_shown_with_its_text(new_client: ClientFactory, engine: FakeEngine) -> None:
    use(engine, TAGGED_ARGUMENTS + "{# tools <tool_call>\n<function= #}")
    ask(
        new_client(),
        tools=[TOOL],
        messages=[USER, calling(call('{"path": "/tm')), result(), BYE],
    )
    assert '{"path": "/tm' in engine.prompt


def test_our_own_answers_come_back(new_client: ClientFactory, engine: FakeEngine) -> None:
    use(engine, CHATML_REASONING)
    engine.script = text_script(
        "<think>hm</think>I look.\n<tool_call>\n",
        '{"name": "read", "arguments": {"a": 1}}\n</tool_call>',
    )
    client = new_client()
    answer = ask(client, messages=[USER], tools=[TOOL])["choices"][0]["message"]
    call_id = answer["tool_calls"][0]["id"]
    ask(client, messages=[USER, answer, result(call_id)], tools=[TOOL])
    assert (
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nI look.\n<tool_call>\n"
        '{"name": "read", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
    ) in engine.prompt


def test_answers_that_a_template_refuses_come_back(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, THINKING_ONLY)
    client = new_client()
    spoken = calling(call("{}"), content="I look.", reasoning_content="hm", reasoning="hm")
    ask(client, messages=[USER, spoken, result(), BYE])
    assert "I look." in engine.prompt
    use(engine, SINGLE_CALLS)
    client = new_client()
    both = calling(call("{}", "a"), call('{"b": 1}', "b"))
    ask(client, messages=[USER, both, result("b", "second"), result("a", "first")])
    assert engine.prompt.index("first") < engine.prompt.index('{"b": 1}')


@pytest.mark.parametrize(
    "fields", [{"response_format": FORMAT}, {"tools": [TOOL]}, {"tools": [TOOL], "n": 2}]
)
def test_the_servers_text_needs_no_system_role(
    fields: dict[str, Any], new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, NO_SYSTEM)
    ask(new_client(), messages=[USER], **fields)
    assert engine.prompt.count("<start_of_turn>user") == 1
    assert engine.prompt.endswith("\n\nHi<end_of_turn>\n<start_of_turn>model\n")
    assert ('"required"' if "response_format" in fields else '"read"') in engine.prompt


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_needs_no_system_role(
    role: str, new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, NO_SYSTEM)
    ask(new_client(), messages=[{"role": role, "content": "Be brief."}, USER])
    assert engine.prompt == (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


def test_the_servers_text_displaces_no_default(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, STRICT_IDS)
    client = new_client()
    ask(client, messages=[USER], response_format=FORMAT)
    assert engine.prompt.startswith("<s>[SYSTEM_PROMPT]You are a helpful default.[/SYSTEM_PROMPT]")
    assert engine.prompt.endswith("\n\nHi[/INST]")
    assert '"required"' in engine.prompt
    ask(client, messages=[{"role": "system", "content": "Be brief."}, USER], response_format=FORMAT)
    assert engine.prompt.startswith("<s>[SYSTEM_PROMPT]Be brief.\n\n")


def test_tools_reach_the_template_as_the_client_wrote_them(
    new_client: ClientFactory, engine: FakeEngine
) -> None:
    use(engine, "{{ tools | tojson }}")
    function = {"name": "read", "parameters": {"type": "object", "default": None}, "strict": False}
    bare = {"type": "function", "function": {"name": "now", "description": None, "other": 1}}
    ask(new_client(), tools=[{"type": "function", "function": function}, bare])
    assert engine.prompt == (
        '[{"type": "function", "function": {"name": "read", "parameters": {"type": "object", '
        '"default": null}, "strict": false}}, {"type": "function", "function": {"name": "now"}}]'
    )


def test_an_answer_may_come_first(new_client: ClientFactory, engine: FakeEngine) -> None:
    use(engine, NO_SYSTEM)
    response = post(new_client(), messages=[{"role": "assistant", "content": "Hello"}, USER])
    assert response.status_code == 200
    assert engine.prompt.index("user") < engine.prompt.index("Hello")
