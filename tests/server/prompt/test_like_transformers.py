"""Wherever transformers renders a prompt, ours is the same."""

import copy
import json
from functools import cache
from typing import Any

import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from stonechat_server.prompt.chat_template import ChatTemplate, RenderOptions
from stonechat_server.prompt.template_messages import to_template_messages
from stonechat_server.schema.messages import Message
from tests.nightly import one_in
from tests.server.prompt.family_templates import FAMILIES

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The "weather" of a <city>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
BARE_TOOL = {"type": "function", "function": {"name": "now"}}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "  Hi 'there' <b>&amp;</b>\n"}
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "name": "weather", "content": '{"t": 3}'}
ARGUMENTS = {"city": "Zürich <b>", "days": [1, None, True, 2.5], "deep": {"k": "v"}}


def call(arguments: object, call_id: str = "abcdefgh1") -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def answer(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", **fields}


CALL = answer(content="", tool_calls=[call(ARGUMENTS)])
CHATS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "user": ([USER], {}),
    "system": ([SYSTEM, USER], {}),
    "turns": ([SYSTEM, USER, answer(content="Hello\n"), USER], {}),
    "no generation": ([USER, answer(content="Hello")], {"add_generation_prompt": False}),
    "tools": ([SYSTEM, USER], {"tools": [TOOL, BARE_TOOL]}),
    "tools alone": ([USER], {"tools": [TOOL]}),
    "call": ([USER, CALL, RESULT], {"tools": [TOOL]}),
    "call with text": ([SYSTEM, USER, {**CALL, "content": "I look."}, RESULT], {"tools": [TOOL]}),
    "call with null": (
        [USER, {**CALL, "content": None}, RESULT, answer(content="3 °C"), USER],
        {"tools": [TOOL]},
    ),
    "two calls": (
        [
            USER,
            answer(content="", tool_calls=[call({}), call({"city": "x"}, "abcdefgh2")]),
            RESULT,
            {**RESULT, "tool_call_id": "abcdefgh2"},
        ],
        {"tools": [TOOL]},
    ),
    "reasoning_content": ([USER, {**CALL, "reasoning_content": "hm\nhm"}, RESULT], {}),
    "reasoning": ([USER, {**CALL, "reasoning": "hm"}, RESULT], {}),
    "thinking": ([USER, {**CALL, "thinking": "hm"}, RESULT], {}),
    "reasoning before text": ([USER, answer(content="Hello", reasoning_content="hm"), USER], {}),
    "thinking in tags": ([USER, answer(content="<think>\nhm\n</think>\n\nHello"), USER], {}),
    "no thinking": ([USER], {"enable_thinking": False, "reasoning_effort": "low"}),
    "documents": ([USER], {"documents": [{"title": "T", "text": "a\nb"}]}),
    "nulls": ([USER, answer(content="Hello", tool_calls=None, refusal=None, name=None), USER], {}),
    "no content": ([USER, answer(content=None), USER], {}),
    "cut arguments": ([USER, answer(content="", tool_calls=[call('{"a": "b')]), RESULT], {}),
    "many turns": ([USER, answer(content="Hello")] * 30 + [USER], {}),
    "continued": ([USER, answer(content="It is ")], {"continue_final_message": True}),
    "continued after system": (
        [SYSTEM, USER, answer(content=" It is")],
        {"continue_final_message": True},
    ),
}
VARIABLES = ("enable_thinking", "reasoning_effort")


def theirs(template: str, chat: str) -> str | None:
    """The prompt of transformers, or None if it fails."""
    messages, options = copy.deepcopy(CHATS[chat])
    options.setdefault("add_generation_prompt", not options.get("continue_final_message"))
    try:
        prompt = TOKENIZER.apply_chat_template(
            messages, chat_template=template, tokenize=False, **options
        )
    except Exception:
        return None
    return str(prompt)


def ours(template: str, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
    variables = {key: value for key, value in options.items() if key in VARIABLES}
    others = {key: value for key, value in options.items() if key not in VARIABLES}
    others.setdefault("add_generation_prompt", not options.get("continue_final_message"))
    return template_of(template).render(messages, RenderOptions(variables=variables, **others))


@cache
def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL)


def from_the_wire(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a request has them: arguments are JSON text."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for item in message.get("tool_calls") or ():
            arguments = item["function"]["arguments"]
            if not isinstance(arguments, str):
                item["function"]["arguments"] = json.dumps(arguments)
    return to_template_messages(TypeAdapter(list[Message]).validate_python(messages))


def renders(family: str, chat: str) -> bool:
    """Whether the template renders the whole chat: else the server rewrites what it leaves out."""
    if (family, chat) == ("single_calls", "call with text"):
        return False
    has_results = any(message["role"] == "tool" for message in CHATS[chat][0])
    return "tool_calls" in FAMILIES[family] or not has_results


CASES = [(family, chat) for family in FAMILIES for chat in CHATS if renders(family, chat)]


@pytest.mark.parametrize("case", one_in(3, CASES), ids=" ".join)
def test_a_prompt_is_that_of_transformers(case: tuple[str, str]) -> None:
    family, chat = case
    template = FAMILIES[family]
    messages, options = CHATS[chat]
    expected = theirs(template, chat)
    for shown in (copy.deepcopy(messages), from_the_wire(messages)):
        prompt = ours(template, shown, options)  # never fails, where transformers may
        if expected is not None:
            assert prompt == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_renders_most_of_these_chats(family: str) -> None:
    assert sum(theirs(FAMILIES[family], chat) is not None for chat in CHATS) >= len(CHATS) / 3
