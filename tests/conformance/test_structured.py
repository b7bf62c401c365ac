"""Uses structured outputs and tools with the official client, on a real model."""

import json
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.models.example_schemas import SCHEMAS
from tests.nightly import one_in

from .conftest import LiveServer

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["c", "f"]}},
            "required": ["city"],
        },
    },
}
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two integers",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
        "strict": True,
    },
}
SQL: dict[str, Any] = {
    "type": "custom",
    "custom": {
        "name": "sql",
        "format": {
            "type": "grammar",
            "grammar": {
                "syntax": "lark",
                "definition": 'start: "SELECT " NAME " FROM " NAME\nNAME: /[a-z]{1,12}/',
            },
        },
    },
}
PARAMETERS = {t["function"]["name"]: t["function"]["parameters"] for t in (WEATHER, ADD)}


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=40)
    kind: Literal["town", "city"]
    population: int
    sights: list[str] = pydantic.Field(max_length=2)


class Chat:
    """Asks the default model."""

    def __init__(self, client: openai.OpenAI, model: str) -> None:
        self.completions = client.chat.completions
        self.fields: dict[str, Any] = {
            "model": model,
            "max_completion_tokens": 300,
            "seed": 5,
        }

    def __call__(self, text: str, **fields: Any) -> Any:
        messages = [{"role": "user", "content": text}]
        return self.completions.create(**(self.fields | {"messages": messages} | fields))


@pytest.fixture
def chat(client: openai.OpenAI, server: LiveServer) -> Chat:
    return Chat(client, server.model)


def test_parse(chat: Chat) -> None:
    answer = chat.completions.parse(
        **chat.fields,
        messages=[{"role": "user", "content": "Describe Paris."}],
        response_format=City,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, City)


def test_stream_of_a_schema(chat: Chat) -> None:
    with chat.completions.stream(
        **chat.fields,
        messages=[{"role": "user", "content": "Describe Rome."}],
        response_format=City,
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message
    assert isinstance(final.parsed, City)
    assert len(deltas) > 5
    assert City.model_validate_json("".join(deltas)) == final.parsed


@pytest.mark.parametrize("name", one_in(10, SCHEMAS))
def test_hot_samples_of_a_schema_validate(chat: Chat, name: str) -> None:
    schema = SCHEMAS[name]
    answer = chat(
        "Give an example.",
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        temperature=1.8,
        n=3,
        max_completion_tokens=70,
    )
    for choice in answer.choices:
        if choice.finish_reason != "length":
            assert choice.finish_reason == "stop"
            jsonschema.validate(json.loads(choice.message.content), schema)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"regex": "[A-Z]{3}-[0-9]{2}"}, r"^[A-Z]{3}-[0-9]{2}$"),
        ({"choice": ["red", "dark blue"]}, r"^(red|dark blue)$"),
        ({"grammar": 'start: "x" "y"{2}'}, r"^xyy$"),
        ({"json": {"type": "boolean"}}, r"^(true|false)$"),
        ({"json": '{"const": 7}'}, r"^7$"),
    ],
)
def test_structured_outputs(chat: Chat, options: dict[str, Any], pattern: str) -> None:
    answer = chat("Go.", extra_body={"structured_outputs": options}, n=2, temperature=2.0)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(choice.message.content, {"type": "string", "pattern": pattern})


def test_json_object(chat: Chat) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "n": 4, "max_completion_tokens": 40}
    answer = chat("A cat.", response_format={"type": "json_object"}, **fields)
    for choice in answer.choices:
        assert choice.message.content.lstrip().startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize("name", ["response_format", "guided_json"])
def test_a_schema_by_another_name_is_enforced(chat: Chat, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    }
    fields: dict[str, Any] = {"extra_body": {name: schema}}
    if name == "response_format":
        fields = {name: {"type": "json_object", "schema": schema}}
    answer = chat("A cat in JSON.", temperature=2.0, max_tokens=40, **fields)
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)


def test_seed_logprobs_and_penalties_under_a_grammar(chat: Chat) -> None:
    fields: dict[str, Any] = {
        "extra_body": {"structured_outputs": {"regex": "[a-z]{4,9}( [a-z]{4,9}){3}"}},
        "logprobs": True,
        "top_logprobs": 2,
        "temperature": 1.5,
        "frequency_penalty": 1.5,
        "n": 2,
    }
    first, second = chat("Words.", **fields), chat("Words.", **fields)
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    for choice in first.choices:
        tokens = choice.logprobs.content
        assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
        assert all(len(t.top_logprobs) == 2 for t in tokens)


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "add"}}]
)
def test_a_required_call_validates(chat: Chat, tool_choice: Any) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "n": 2, "max_completion_tokens": 120}
    answer = chat("2 + 3?", tools=[WEATHER, ADD], tool_choice=tool_choice, **fields)
    for choice in answer.choices:
        if choice.finish_reason == "length":
            continue
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert len({call.id for call in choice.message.tool_calls}) == len(
            choice.message.tool_calls
        )
        for call in choice.message.tool_calls:
            assert tool_choice == "required" or call.function.name == "add"
            jsonschema.validate(json.loads(call.function.arguments), PARAMETERS[call.function.name])


def test_allowed_tools_and_no_parallel_calls(chat: Chat) -> None:
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "add"}}]}
    (choice,) = chat(
        "The weather of 2 + 3?",
        tools=[WEATHER, ADD],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        parallel_tool_calls=False,
    ).choices
    (call,) = choice.message.tool_calls
    assert call.function.name == "add"


def test_no_call_with_tool_choice_none(chat: Chat) -> None:
    (choice,) = chat("2 + 3?", tools=[ADD], tool_choice="none", max_completion_tokens=20).choices
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_a_repeated_call_ends_the_answer(chat: Chat, server: LiveServer) -> None:
    before = server.engine.stats().num_generated_tokens
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "temperature": 0}
    answer = chat("What is the weather in Paris?", **fields)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    calls = [
        (call.function.name, json.dumps(json.loads(call.function.arguments), sort_keys=True))
        for call in choice.message.tool_calls
    ]
    assert len(set(calls)) == len(calls)
    server.wait_until_idle()
    num_generated = server.engine.stats().num_generated_tokens - before
    # The last step may have brought several draft tokens.
    assert answer.usage.completion_tokens <= num_generated <= answer.usage.completion_tokens + 24
    assert num_generated < 300


def test_custom_tool(chat: Chat) -> None:
    (choice,) = chat("All users.", tools=[SQL], tool_choice="required").choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.type == "custom"
        jsonschema.validate(call.custom.input, {"pattern": "^SELECT [a-z]{1,12} FROM [a-z]{1,12}$"})


def test_streamed_calls_equal_the_plain_calls(chat: Chat) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER, ADD], "tool_choice": "required"}
    fields["max_completion_tokens"] = 80
    plain = chat("Weather in Rome?", **fields).choices[0].message.tool_calls
    calls: list[dict[str, str]] = []
    for chunk in chat("Weather in Rome?", stream=True, **fields):
        for part in chunk.choices[0].delta.tool_calls or ():
            if part.index == len(calls):
                calls.append({"id": part.id, "name": part.function.name, "arguments": ""})
            else:
                assert part.index == len(calls) - 1
                assert part.id is None
                assert part.function.name is None
            calls[-1]["arguments"] += part.function.arguments or ""
    assert [(c["name"], c["arguments"]) for c in calls] == [
        (call.function.name, call.function.arguments) for call in plain
    ]


def test_tool_loop(chat: Chat) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 2 + 3?"}]
    fields = {**chat.fields, "tools": [ADD], "temperature": 0}
    first_answer = chat.completions.create(
        **fields, messages=messages, tool_choice="required", parallel_tool_calls=False
    )
    message = first_answer.choices[0].message
    (call,) = message.tool_calls or ()
    arguments = json.loads(call.function.arguments)
    result = str(arguments["a"] + arguments["b"])
    messages.append(message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    answer = chat.completions.create(**fields, messages=messages, tool_choice="none")
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_calls_or_an_answer_in_the_response_format(chat: Chat) -> None:
    answer = chat(
        "What is 2 + 3?",
        tools=[ADD],
        response_format={
            "type": "json_schema",
            "json_schema": {
                "name": "sum",
                "schema": {
                    "type": "object",
                    "required": ["sum"],
                    "properties": {"sum": {"type": "integer"}},
                },
            },
        },
        temperature=1.0,
        n=4,
    )
    for choice in answer.choices:
        if choice.finish_reason == "stop":
            assert set(json.loads(choice.message.content)) == {"sum"}
        elif choice.finish_reason == "tool_calls":
            assert choice.message.content is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
                }
            },
            "response_format.json_schema.schema",
        ),
        (
            {
                "tools": [
                    WEATHER,
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"type": "object", "not": {}},
                            "strict": True,
                        },
                    },
                ]
            },
            "tools[1].function.parameters",
        ),
        ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs.regex"),
        (
            {"extra_body": {"structured_outputs": {"json": {"$ref": "#"}}}},
            "structured_outputs.json",
        ),
        ({"extra_body": {"structured_outputs": {"grammar": "x"}}}, "structured_outputs.grammar"),
    ],
)
def test_what_cannot_be_enforced_is_a_400(chat: Chat, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error_info:
        chat("Go.", **fields)
    assert error_info.value.param == param
    assert error_info.value.code == "invalid_grammar"


def test_a_function_without_keys_is_called_without_arguments(chat: Chat) -> None:
    parameters = {"type": "object", "properties": {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    (choice,) = chat("Call f.", tools=[tool], tool_choice="required", temperature=1.5).choices
    assert [call.function.arguments for call in choice.message.tool_calls] == ["{}"]


def test_a_tool_that_is_not_strict_is_never_refused(chat: Chat) -> None:
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "minItems": 1}
    parameters = {"type": "object", "properties": {"tags": tags}, "required": ["tags"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    (choice,) = chat("Call f.", tools=[tool], tool_choice="required", temperature=1.5).choices
    if choice.finish_reason != "length":
        for call in choice.message.tool_calls:
            assert set(json.loads(call.function.arguments)["tags"]) <= {"a", "b"}


def test_nothing_is_left_running(server: LiveServer) -> None:
    server.wait_until_idle()
