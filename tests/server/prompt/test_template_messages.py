"""What a client kept from an answer, ours or another server's, reaches the template."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import TypeAdapter, ValidationError

from stonechat_server.errors import APIError
from stonechat_server.prompt.template_messages import to_arguments, to_template_messages
from stonechat_server.prompt.tool_prompt import with_modern_calls
from stonechat_server.schema.messages import Message


def convert(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return to_template_messages(TypeAdapter(list[Message]).validate_python(list(messages)))


def answer(**fields: Any) -> dict[str, Any]:
    (converted,) = convert({"role": "assistant", **fields})
    assert converted.pop("role") == "assistant"
    return converted


def call(arguments: object = "{}", **fields: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    return {"id": "c1", "type": "function", "function": function, **fields}


def test_messages_reach_the_template_whole() -> None:
    assert convert(
        {"role": "developer", "content": "x", "name": "n"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
        {"role": "assistant", "tool_calls": [call('{"a": 1}'), call("[1", id="c2")]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "custom": 1},
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
    ) == [
        {"role": "system", "content": "x", "name": "n"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "tool_calls": [call({"a": 1}), call("[1", id="c2")]},
        {"role": "assistant", "content": "no", "custom": 1},
        {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
    ]


@pytest.mark.parametrize(
    "leftovers",
    [
        {"tool_calls": []},
        {"tool_calls": None},
        {"annotations": []},
        {"refusal": None, "audio": None, "function_call": None, "parsed": None},
        {"reasoning_content": None, "reasoning": "", "thinking_blocks": []},
        {"reasoning_details": [], "thinking": []},
        {"images": [], "tool_calls": [], "annotations": [], "name": None},
    ],
)
def test_what_is_null_or_empty_counts_as_absent(leftovers: dict[str, Any]) -> None:
    assert answer(content="Hello", **leftovers) == {"content": "Hello"}


@pytest.mark.parametrize("content", [None, []])
def test_an_answer_without_content_has_none(content: object) -> None:
    assert answer(content=content, tool_calls=[call()]) == {"tool_calls": [call({})]}
    assert answer(content=content) == {}


def test_whole_messages_of_the_client_library_are_taken() -> None:
    text = ChatCompletionMessage(role="assistant", content="Hello", annotations=[], tool_calls=[])
    assert answer(**{**text.model_dump(), "parsed": {"a": None}}) == {
        "content": "Hello",
        "parsed": {"a": None},
    }
    calls = ChatCompletionMessage.model_validate(
        {
            "role": "assistant",
            "tool_calls": [
                call('{"a": 1}', index=0, extra_content={"google": {"thought_signature": "x"}}),
                {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
            ],
            "reasoning_content": "hm",
        }
    )
    dumped = calls.model_dump()
    dumped["tool_calls"][0]["function"]["parsed_arguments"] = {"a": 1}
    assert answer(**dumped) == {
        "tool_calls": [
            call({"a": 1}),
            {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "SELECT"}},
        ],
        "reasoning_content": "hm",
    }


def test_a_refusal_is_shown_where_there_is_no_content() -> None:
    assert answer(content=None, refusal="No.")["content"] == "No."
    assert answer(content="Hello", refusal="No.")["content"] == "Hello"


@pytest.mark.parametrize(
    "fields",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"thinking": "hm"},
        {"reasoning": None, "thinking": "hm"},
        {"reasoning_content": "", "reasoning": "hm"},
        {"reasoning": [{"type": "text", "text": "h"}, {"type": "text", "text": "m"}]},
        {"thinking": {"content": "hm", "signature": "x"}},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm", "id": None}]},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]},
        {
            "content": [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
                {"type": "output_text", "text": "x", "annotations": []},
            ]
        },
    ],
)
def test_reasoning_is_found_under_any_name(fields: dict[str, Any]) -> None:
    converted = answer(**{"content": "x", **fields})
    assert converted.pop("content") == "x"
    assert set(converted.values()) == {"hm"}
    assert converted.keys() <= {"reasoning_content", "reasoning", "thinking"}


def test_reasoning_that_holds_no_text_is_left_out() -> None:
    parts = [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": None}]
    assert answer(content=parts, thinking=True) == {"content": ""}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ("", {}),
        ("  ", {}),
        (None, {}),
        ("null", {}),
        ('{"path": "/tm', '{"path": "/tm'),
        ("[1, 2]", "[1, 2]"),
        ([1, 2], "[1, 2]"),
        (3, "3"),
        (True, "true"),
        ("3", "3"),
        ('"text"', '"text"'),
        ("no JSON", "no JSON"),
        ('"' + "[" * 1000, '"' + "[" * 1000),
        pytest.param("[" * 100_000, "[" * 100_000, id="deep"),
    ],
)
def test_arguments_are_an_object_or_text(arguments: object, expected: object) -> None:
    assert to_arguments(arguments) == expected
    (converted,) = answer(tool_calls=[call(arguments)])["tool_calls"]
    assert converted["function"]["arguments"] == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text", "text"),
        (["a", 1], '["a", 1]'),
        ({"t": "é"}, '{"t": "é"}'),
        (3.5, "3.5"),
        (False, "false"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "a\nb"),
        ([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}], "a"),
        ({"type": "text", "text": "a"}, "a"),
        ([{"type": "Feature", "id": 1}], '[{"type": "Feature", "id": 1}]'),
        ([{"type": "text", "text": "a"}, 1], '[{"type": "text", "text": "a"}, 1]'),
    ],
)
def test_results_are_any_json(content: object, expected: str) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": content}
    older = {"role": "function", "name": "f", "content": content}
    assert [message["content"] for message in convert(result, older)] == [expected] * 2


@pytest.mark.parametrize("content", [None, []])
def test_a_result_that_is_empty_has_no_content(content: object) -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": content}
    assert convert(result) == [{"role": "tool", "tool_call_id": "c1"}]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "document", "data": "x"}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "video", "data": "x"}]},
    ],
)
def test_other_media_are_a_400(message: dict[str, Any]) -> None:
    with pytest.raises(APIError) as error_info:
        convert({"role": "user", "content": "Hi"}, message)
    assert error_info.value.param == "messages[1].content[0]"
    assert error_info.value.code == "unsupported_parameter"


def test_calls_stand_in_answers_only() -> None:
    assert convert({"role": "user", "content": "Hi", "tool_calls": []}) == [
        {"role": "user", "content": "Hi"}
    ]
    with pytest.raises(APIError) as error_info:
        convert({"role": "user", "content": "Hi", "tool_calls": [call()]})
    assert error_info.value.param == "messages[0].tool_calls"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "function"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "other", "function": {}}]},
        {"role": "assistant", "tool_calls": ["c"]},
        {"role": "assistant", "content": [{"type": "video"}]},
        {"role": "tool", "tool_call_id": ["c"], "content": "x"},
    ],
)
def test_what_no_server_writes_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        convert(message)


def ids(*messages: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The ids of the calls, and those that the results name."""
    modern = with_modern_calls(convert(*messages))
    calls = [item["id"] for message in modern for item in message.get("tool_calls", ())]
    return calls, [message["tool_call_id"] for message in modern if message["role"] == "tool"]


def calling(*call_ids: object) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [call(id=call_id) for call_id in call_ids]}


def result(call_id: object) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "1"}


@pytest.mark.parametrize(
    "call_id", ["call_abc", "chatcmpl-tool-0123456789abcdef", "abcdefgh1", "functions.f:0", "0"]
)
def test_ids_of_any_form_stay(call_id: str) -> None:
    assert ids(calling(call_id), result(call_id)) == ([call_id], [call_id])


def test_calls_without_ids_get_some_that_their_results_share() -> None:
    for missing in ("", None):
        calls, results = ids(calling(missing, missing), result(missing), result(missing))
        assert calls == results
        assert len(set(calls)) == 2
        assert all(len(call_id) == 9 and call_id.isalnum() for call_id in calls)
    calls, results = ids(calling("a", "b"), {"role": "tool", "content": "1"}, result("b"))
    assert calls == results
    calls, results = ids(calling(7, 8), result(8), result(7))
    assert (calls, results) == (["7", "8"], ["8", "7"])
    bare = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    calls, results = ids(bare, result("x"))
    assert calls == results
    custom = {"role": "assistant", "tool_calls": [{"id": "c", "custom": {"name": "sql"}}]}
    assert ids(custom, result("c")) == (["c"], ["c"])


def test_equal_ids_are_told_apart() -> None:
    calls, results = ids(calling("c", "c"), result("c"), result("c"), calling("c"), result("c"))
    assert calls == results
    assert len(set(calls)) == 3


def test_results_are_named_after_the_latest_call_with_their_id() -> None:
    first, second = calling("c"), calling("c")
    second["tool_calls"][0]["function"]["name"] = "g"
    messages = with_modern_calls(convert(first, result("c"), second, result("c")))
    assert [message.get("name") for message in messages] == [None, "f", None, "g"]
