"""Checks of the fields that decide what form the answer has: schemas and tools."""

import json

from stonechat_server.scorecard.outcome import HONOURED, Finding, check, ignored, wrong
from stonechat_server.scorecard.server import Answer, Json, Server

GROUP = "form"
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "enum": ["zx-41", "qk-77"]},
        "count": {"type": "integer", "enum": [5, 6]},
    },
    "required": ["code", "count"],
    "additionalProperties": False,
}
"""Nothing that a model writes by itself: only a server that forces it gets it right."""


def tool(name: str) -> Json:
    """A tool whose arguments no model makes up."""
    function = {"name": name, "description": f"Does {name}.", "parameters": SCHEMA}
    return {"type": "function", "function": function}


TOOLS = [tool("order_part"), tool("cancel_part")]
QUESTION = "Say hello."


@check(GROUP, "response_format: json_object")
async def json_object(server: Server) -> Finding:
    """The answer is a JSON object."""
    fields = {"response_format": {"type": "json_object"}, "max_tokens": 400}
    answer = await server.ask("Describe a cat as JSON with the keys name and age.", **fields)
    if answer.choice().get("finish_reason") == "length":
        is_begun = answer.content.lstrip().startswith("{")
        return HONOURED if is_begun else ignored(f"text came: {answer.content[:60]!r}")
    return _is_object(answer.content)


def _is_object(text: str) -> Finding:
    try:
        value = json.loads(text)
    except ValueError:
        return ignored(f"text came: {text[:60]!r}")
    return HONOURED if isinstance(value, dict) else wrong("the JSON is not an object")


@check(GROUP, "response_format: json_schema")
async def json_schema(server: Server) -> Finding:
    """The answer follows a schema that no model follows by chance."""
    form = {"name": "part", "strict": True, "schema": SCHEMA}
    answer = await server.ask(
        QUESTION, max_tokens=100, response_format={"type": "json_schema", "json_schema": form}
    )
    return _follows(answer.content)


def _follows(text: str) -> Finding:
    try:
        value = json.loads(text)
    except ValueError:
        return ignored(f"text came: {text[:60]!r}")
    properties = SCHEMA["properties"]
    keys = isinstance(value, dict) and set(value) == set(properties)
    if keys and all(value[name] in properties[name]["enum"] for name in properties):
        return HONOURED
    return ignored(f"JSON of another form came: {text[:60]!r}")


async def _with_tools(server: Server, **fields: object) -> Answer:
    return await server.ask(QUESTION, tools=TOOLS, max_tokens=120, **fields)


def _calls(answer: Answer, names: set[str]) -> Finding:
    """Calls must come, of these tools, with arguments that follow the schema."""
    if not answer.calls:
        return ignored(f"no call came, but text: {answer.content[:60]!r}")
    for call in answer.calls:
        if call["function"]["name"] not in names:
            return wrong(f"{call['function']['name']} was called")
        if not call.get("id") or call.get("type") != "function":
            return wrong("a call has no id or type")
        found = _follows(call["function"]["arguments"])
        if found is not HONOURED:
            return wrong(f"arguments: {found.detail}")
    reason = answer.choice().get("finish_reason")
    return HONOURED if reason in ("tool_calls", "stop") else wrong(f"finish_reason is {reason!r}")


@check(GROUP, "tool_choice: required")
async def tool_required(server: Server) -> Finding:
    """Some tool is called."""
    answer = await _with_tools(server, tool_choice="required")
    return _calls(answer, {"order_part", "cancel_part"})


@check(GROUP, "tool_choice: a name")
async def tool_named(server: Server) -> Finding:
    """That tool is called, and no other."""
    choice = {"type": "function", "function": {"name": "cancel_part"}}
    return _calls(await _with_tools(server, tool_choice=choice), {"cancel_part"})


@check(GROUP, "tool_choice: none")
async def tool_none(server: Server) -> Finding:
    """Text comes."""
    answer = await _with_tools(server, tool_choice="none")
    return wrong("a tool was called") if answer.calls else HONOURED


@check(GROUP, "parallel_tool_calls: false")
async def one_call(server: Server) -> Finding:
    """At most one tool is called."""
    answer = await _with_tools(server, tool_choice="required", parallel_tool_calls=False)
    if len(answer.calls) > 1:
        return ignored(f"{len(answer.calls)} calls came")
    return _calls(answer, {"order_part", "cancel_part"})


@check(GROUP, "a tool's result is read")
async def tool_result(server: Server) -> Finding:
    """A conversation with a call and its result is answered."""
    arguments = json.dumps({"code": "zx-41", "count": 5})
    function = {"name": "order_part", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [
        {"role": "user", "content": "Order five zx-41."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    answer = await server.ask(messages=messages, tools=TOOLS)
    answer.choice()
    return HONOURED


@check(GROUP, "calls in a stream")
async def streamed_calls(server: Server) -> Finding:
    """The deltas of a call add up to valid arguments."""
    answer = await _with_tools(server, tool_choice="required", stream=True)
    text, name = "", ""
    for chunk in answer.chunks():
        for choice in chunk.get("choices") or []:
            for part in (choice.get("delta") or {}).get("tool_calls") or []:
                if part["index"] == 0:
                    name += (part.get("function") or {}).get("name") or ""
                    text += (part.get("function") or {}).get("arguments") or ""
    if not name:
        return ignored("no call came in the stream")
    return _follows(text)
