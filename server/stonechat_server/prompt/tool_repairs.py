"""Rewrites tools for templates that cannot render them as they are.

Only the prompt shows the rewritten tools. The grammar follows the schemas that the client gave.
"""

from collections.abc import Mapping
from typing import Any

TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
}
"""JSON Schema's names of the types of values, without that of null."""
MAX_DEPTH = 16
"""Below that, a schema is left as it is."""


def with_all_keys(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give a function, and its arguments, the keys that some templates read without asking."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    schema = function.get("parameters") or {"type": "object"}
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    arguments = {
        name: {"type": "any", "description": "", **value} if isinstance(value, Mapping) else value
        for name, value in properties.items()
    }
    known = {"name": function.get("name"), "description": ""}
    return {
        **tool,
        "function": {**known, **function, "parameters": {**schema, "properties": arguments}},
    }


def with_plain_types(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give every schema of a function one type, for templates that translate types one by one.

    Some of these read the letters of a type that they do not know as types, without an end.
    """
    tool = with_all_keys(tool)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    schema = function["parameters"]
    arguments = {name: _typed(value) for name, value in schema["properties"].items()}
    parameters = {**schema, "properties": arguments}
    return {**tool, "function": {**function, "parameters": parameters}}


def _typed(schema: object, depth: int = 0) -> Any:
    """The schema with one type, and its parts too. `true` and `false` become schemas."""
    if not isinstance(schema, Mapping):
        schema = {}
    if depth > MAX_DEPTH:
        return schema
    kind = _type_of(schema)
    typed = {"description": "", **schema, "type": kind}
    if isinstance(properties := schema.get("properties"), Mapping):
        typed["properties"] = {k: _typed(v, depth + 1) for k, v in properties.items()}
    if kind == "array":
        typed["items"] = _typed(schema.get("items"), depth + 1)
    if kind == "object":
        typed["additionalProperties"] = _typed(schema.get("additionalProperties"), depth + 1)
    return typed


def _type_of(schema: Mapping[str, Any]) -> str:
    """The type of a schema, or the first of several that is not null."""
    named = schema.get("type")
    for name in named if isinstance(named, list) else [named]:
        if name in TYPES.values():
            return str(name)
    for branch in schema.get("anyOf") or schema.get("oneOf") or ():
        if isinstance(branch, Mapping) and branch.get("type") != "null":
            return _type_of(branch)
    values = [schema["const"]] if "const" in schema else schema.get("enum") or ()
    value = next((value for value in values if value is not None), "")
    return TYPES.get(type(value), "string")
