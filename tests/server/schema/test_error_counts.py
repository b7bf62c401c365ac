"""A wrong body gives few errors, however long it is: collecting one per item would take long."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError

from stonechat_server.api.openapi.wire_types import REQUESTS
from stonechat_server.errors import APIError
from stonechat_server.request.body import parse_request
from stonechat_server.schema.base import WireModel

MAX_ITEMS = 128
"""A list that may not be longer need not stop at its first wrong item."""
MAX_ERRORS = 100
WRONG = [7] * 100_000
WRONG_TEXTS = ["x"] * 100_000
MESSAGES = [{"role": "user", "content": "a"}]


def unbounded(schema: Any, path: str = "") -> Iterator[str]:
    """The paths in a core schema of lists and dicts that collect an error per item."""
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from unbounded(part, path)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind == "list" and collects_errors(schema):
        yield path
    if kind == "dict" and not takes_anything(schema):
        yield path
    if kind == "function-before" and schema["schema"].get("type") == "dict":
        return  # checked as a whole before
    for key, part in schema.items():
        if kind == "model-fields" and key == "fields":
            for name, field in part.items():
                yield from unbounded(field, f"{path}.{name}")
        elif key not in ("metadata", "serialization"):
            yield from unbounded(part, path)


def collects_errors(schema: dict[str, Any]) -> bool:
    is_short = schema.get("max_length", MAX_ITEMS + 1) <= MAX_ITEMS
    return not (schema.get("fail_fast") or is_short or schema["items_schema"]["type"] == "any")


def takes_anything(schema: dict[str, Any]) -> bool:
    return bool(
        schema["keys_schema"] == {"type": "str"} and schema["values_schema"]["type"] == "any"
    )


def wire_models(base: type[WireModel] = WireModel) -> list[type[WireModel]]:
    return [m for below in base.__subclasses__() for m in (below, *wire_models(below))]


def test_no_list_collects_an_error_per_item() -> None:
    for model in wire_models():
        model.model_rebuild()
        assert list(unbounded(model.__pydantic_core_schema__, model.__name__)) == []


def test_the_models_of_all_endpoints_are_looked_at() -> None:
    assert set(REQUESTS) <= set(wire_models())


def test_a_list_that_collects_errors_is_found() -> None:
    class Wrong(BaseModel):
        texts: str | list[str] | None = None
        pairs: dict[str, int] | None = None
        anything: list[Any] | dict[str, Any]
        few: Annotated[list[str], Field(max_length=64)]

    assert list(unbounded(Wrong.__pydantic_core_schema__)) == [".texts", ".pairs"]


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "ChatCompletionRequest", {"messages": MESSAGES, **fields}


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[fields])


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "CompletionRequest", {"prompt": "a", **fields}


def responses(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "ResponsesRequest", {"input": "a", **fields}


def messages(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "MessagesRequest", {"max_tokens": 1, "messages": MESSAGES, **fields}


def turn(*blocks: Any) -> tuple[str, dict[str, Any]]:
    return messages(messages=[{"role": "user", "content": [*blocks]}])


CASES: list[tuple[tuple[str, dict[str, Any]], str]] = [
    (chat(messages=WRONG), "messages[0]"),
    (message(role="user", content=WRONG), "messages[0].content[0]"),
    (message(role="system", content=WRONG), "messages[0].content[0]"),
    (message(role="assistant", content=WRONG), "messages[0].content[0]"),
    (message(role="assistant", tool_calls=WRONG), "messages[0].tool_calls[0]"),
    (chat(tools=WRONG), "tools[0]"),
    (chat(functions=WRONG), "functions[0]"),
    (chat(modalities=WRONG_TEXTS), "modalities[0]"),
    (chat(documents=WRONG), "documents[0]"),
    (chat(metadata={str(i): 7 for i in range(50_000)}), "metadata"),
    (chat(metadata={"k" * 65 + str(i): 7 for i in range(50_000)}), "metadata"),
    (chat(logit_bias={str(i): "x" for i in range(50_000)}), "logit_bias.0"),
    (
        chat(
            tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": WRONG}}
        ),
        "tool_choice.allowed_tools.tools[0]",
    ),
    (completion(prompt=["a", *WRONG]), "prompt[1]"),
    (completion(prompt=[7, *WRONG_TEXTS]), "prompt[1]"),
    (completion(prompt=[[7], *WRONG]), "prompt[1]"),
    (completion(prompt=[[7], WRONG_TEXTS]), "prompt[1][0]"),
    (completion(stop=WRONG), "stop"),
    (completion(stop_token_ids=WRONG_TEXTS), "stop_token_ids"),
    (completion(guided_choice=WRONG), "guided_choice[0]"),
    (completion(structured_outputs={"choice": WRONG}), "structured_outputs.choice[0]"),
    (completion(prediction={"type": "content", "content": WRONG}), "prediction.content[0]"),
    (responses(input=WRONG), "input[0]"),
    (responses(input=[{"role": "user", "content": WRONG}]), "input[0].content[0]"),
    (
        responses(input=[{"type": "function_call_output", "call_id": "a", "output": WRONG}]),
        "input[0].output[0]",
    ),
    (responses(input=[{"type": "reasoning", "summary": WRONG}]), "input[0].summary[0]"),
    (responses(input=[{"type": "reasoning", "content": WRONG}]), "input[0].content[0]"),
    (responses(tools=[{"type": "namespace", "name": "a", "tools": WRONG}]), "tools[0].tools[0]"),
    (responses(include=WRONG), "include[0]"),
    (responses(context_management=WRONG), "context_management[0]"),
    (messages(messages=WRONG), "messages[0]"),
    (messages(system=WRONG), "system[0]"),
    (messages(stop_sequences=WRONG), "stop_sequences"),
    (messages(tools=WRONG), "tools[0]"),
    (messages(betas=WRONG), "betas[0]"),
    (turn(*WRONG), "messages[0].content[0]"),
    (
        turn({"type": "tool_result", "tool_use_id": "a", "content": WRONG}),
        "messages[0].content[0].content[0]",
    ),
    (
        turn({"type": "search_result", "source": "a", "title": "b", "content": WRONG}),
        "messages[0].content[0].content[0]",
    ),
    (
        turn({"type": "document", "source": {"type": "content", "content": WRONG}}),
        "messages[0].content[0].source.content[0]",
    ),
    (("EmbeddingRequest", {"input": ["a", *WRONG]}), "input[1]"),
    (("EmbeddingRequest", {"input": [7, *WRONG_TEXTS]}), "input[1]"),
    (("EmbeddingRequest", {"input": [[7], WRONG_TEXTS]}), "input[1][0]"),
    (("DetokenizeRequest", {"tokens": WRONG_TEXTS}), "tokens[0]"),
]
MODELS: dict[str, Any] = {model.__name__: model for model in REQUESTS}


@pytest.mark.parametrize(("request_of", "path"), CASES, ids=[path for _, path in CASES])
def test_a_long_wrong_list_gives_few_errors_with_the_first_path(
    request_of: tuple[str, dict[str, Any]], path: str
) -> None:
    name, fields = request_of
    body = json.dumps(fields).encode()
    with pytest.raises(ValidationError) as caught:
        MODELS[name].model_validate_json(body)
    assert caught.value.error_count() <= MAX_ERRORS
    with pytest.raises(APIError) as refused:
        parse_request(body, MODELS[name])
    assert refused.value.param == path


def test_the_first_wrong_item_is_named_wherever_it_is() -> None:
    parts = [{"type": "text", "text": "a"}] * 1_000
    fields = message(role="user", content=[*parts, {"type": "text"}, *WRONG])[1]
    with pytest.raises(APIError) as refused:
        parse_request(json.dumps(fields).encode(), MODELS["ChatCompletionRequest"])
    assert refused.value.param == "messages[0].content[1000].text"
