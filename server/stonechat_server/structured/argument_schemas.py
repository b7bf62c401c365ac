"""Chooses the JSON schema that the arguments of each function tool must follow.

With `strict: true` it is the tool's own schema, or the request is refused. Any other tool never
refuses a request: what cannot be enforced is left out of its schema, and named.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from stonechat_models import CostlyGrammarError, GrammarSpec, plain_schema, relax_schema
from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import FunctionTool, Tool
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.records import read_record
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import (
    ToolOptions,
    allows_objects,
    parameters,
    tool_name,
    tool_path,
)
from stonechat_server.tool_formats.layout import HarmonyLayout, JsonLayout, ToolFormat

KNOWN_SCHEMAS = 512
_LOOSENED_PARTS = (8, 4, 2, 1)
"""The schemas that are loosened at a time: an eighth of them, a quarter, and so on."""


@dataclass(frozen=True, slots=True)
class ArgumentSchema:
    """What is enforced of one tool's schema.

    `left_out` has the path of each value that is not, such as `.properties.id.pattern`; an empty
    path is the whole schema. `reason` says why a strict tool is refused.
    """

    schema: dict[str, Any]
    left_out: tuple[str, ...] = ()
    reason: str | None = None


class ArgumentSchemas:
    """Remembers the schemas of tools. Thread-safe.

    `reason_against` says why a grammar cannot be enforced, or returns None. It raises
    `CostlyGrammarError` for a grammar that takes too long to compile. `writer` writes the calls of
    a format, whose own grammar is checked too.
    """

    def __init__(
        self, reason_against: Callable[[GrammarSpec], str | None], writer: LarkWriter | None = None
    ) -> None:
        self._reason_against = reason_against
        self._writer = writer or LarkWriter({})
        self._lookup = lru_cache(KNOWN_SCHEMAS)(self._choose)

    def enforce(
        self, request: ChatCompletionRequest, options: ToolOptions, format: ToolFormat | None = None
    ) -> tuple[ToolOptions, tuple[str, ...]]:
        """Return the options, whose callable tools have schemas that can be enforced in `format`.

        The second value names what is left out, as paths in the request. Raises `APIError` 400 that
        names the schema of a strict tool which cannot be enforced.
        """
        schemas: dict[str, dict[str, Any]] = {}
        names: list[str] = []
        callable_names = {tool_name(tool) for tool in options.callable}
        for i, tool in enumerate(request.tools or ()):
            if not isinstance(tool, FunctionTool):
                continue
            where = f"{tool_path(request, i)}.parameters"
            source = json.dumps(parameters(tool))
            found = self._lookup(source, tool.function.strict is True, format)
            if found.reason is not None:
                raise invalid(
                    where, f"This cannot be enforced: {found.reason}", code="invalid_grammar"
                )
            schemas[tool.function.name] = found.schema
            if tool.function.name in callable_names:
                names += [where + path for path in found.left_out]
        callable_ = tuple(_with_schema(tool, schemas) for tool in options.callable)
        return replace(options, callable=callable_), tuple(names)

    def _choose(
        self, source: str, is_strict: bool, format: ToolFormat | None = None
    ) -> ArgumentSchema:
        schema = json.loads(source)
        if is_strict:
            root = {**schema, "type": "object"}
            try:
                reason = self._reason_against(GrammarSpec("json_schema", json.dumps(root)))
                reason = reason or self._reason_in(format, root)
            except CostlyGrammarError as error:
                reason = str(error)
            return ArgumentSchema({} if reason else _arguments_form(schema), (), reason)
        left_out = [] if allows_objects(schema) else [".type"]
        schema, paths = relax_schema(
            {**schema, "type": "object"}, lambda part: self._is_enforceable(part, format)
        )
        left_out += ["".join(map(_step, path)) for path in paths]
        form = _arguments_form(schema)
        if ".oneOf" in left_out:
            form = _without_alternatives(form)
        elif "oneOf" in schema and "anyOf" not in schema and not _writes_json(format):
            loose = {("anyOf" if key == "oneOf" else key): v for key, v in schema.items()}
            if not _is_record(form) and _is_record(loose := _arguments_form(loose)):
                form = loose
                left_out.append(".oneOf")
        return ArgumentSchema(form, tuple(left_out))

    def _is_enforceable(self, schema: dict[str, Any], format: ToolFormat | None) -> bool:
        """Whether the whole can be enforced, and each argument too, which may be written apart."""
        if self._reason_against(GrammarSpec("json_schema", json.dumps(schema))) is not None:
            return False
        if self._reason_in(format, schema) is not None:
            return False
        plain = _with_required(plain_schema(schema))
        record = read_record(plain, lambda key: True)
        if record is None or not record.properties:
            return True
        apart = {**record.schemas()[0], "required": list(record.properties)}
        apart["$defs"] = plain.get("$defs", {})
        return self._reason_against(GrammarSpec("json_schema", json.dumps(apart))) is None

    def _reason_in(self, format: ToolFormat | None, schema: dict[str, Any]) -> str | None:
        """Why arguments, or one argument, of this schema cannot be enforced in the format."""
        if format is None or _writes_json(format):
            return None
        if schema.get("type") != "object":
            schema = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
        function = {"name": "f", "parameters": _arguments_form(schema)}
        tool = FunctionTool.model_validate({"type": "function", "function": function})
        options = ToolOptions(
            offered=(tool,), callable=(tool,), is_required=True, is_parallel=False
        )
        return self._reason_against(ToolGrammar(options, format, self._writer).build())


def loosened(
    request: ChatCompletionRequest, options: ToolOptions, unenforced: tuple[str, ...]
) -> Iterator[tuple[ToolOptions, tuple[str, ...]]]:
    """Yield looser and looser options, and what they leave out, for grammars that are too large.

    The largest schemas of tools that are not strict become any object.
    """
    callable_names = {tool_name(tool) for tool in options.callable}
    paths = {
        tool.function.name: f"{tool_path(request, i)}.parameters"
        for i, tool in enumerate(request.tools or ())
        if isinstance(tool, FunctionTool)
        and tool.function.strict is not True
        and tool.function.name in callable_names
    }
    sizes = {
        tool.function.name: len(json.dumps(parameters(tool)))
        for tool in options.functions
        if tool.function.name in paths and parameters(tool).get("properties")
    }
    largest = sorted(sizes, key=lambda name: -sizes[name])
    counts = [max(1, len(largest) // part) for part in _LOOSENED_PARTS] if largest else []
    for count in dict.fromkeys(counts):
        schemas = {tool.function.name: parameters(tool) for tool in options.functions}
        schemas |= {name: {"type": "object"} for name in largest[:count]}
        chosen = {paths[name] for name in largest[:count]}
        others = tuple(p for p in unenforced if not any(p.startswith(path) for path in chosen))
        names = (*others, *(path for path in paths.values() if path in chosen))
        callable_ = tuple(_with_schema(tool, schemas) for tool in options.callable)
        yield replace(options, callable=callable_), names


def _without_alternatives(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without `anyOf`, which stands for a `oneOf` that is left out, if it is a record.

    Its properties are worth more than the alternatives: they are written as the format has them.
    """
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return rest if _is_record(rest) and not _is_record(schema) else schema


def _is_record(schema: dict[str, Any]) -> bool:
    return read_record(schema, lambda key: True) is not None


def _writes_json(format: ToolFormat | None) -> bool:
    """Whether arguments are one JSON object. So they are if the format is not known."""
    return format is None or isinstance(format.layout, JsonLayout | HarmonyLayout)


def _step(name: str | int) -> str:
    return f"[{name}]" if isinstance(name, int) else f".{name}"


def _arguments_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as the grammars and parsers of arguments expect it."""
    return _with_required({**plain_schema({**schema, "type": "object"}), "type": "object"})


def _with_required(schema: dict[str, Any]) -> dict[str, Any]:
    """An equal schema that declares each required key, if it allows such keys."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    others = schema.get("additionalProperties", True)
    missing = [name for name in required if name not in properties]
    if not missing or others is False or "patternProperties" in schema:
        return schema
    properties = {**properties, **dict.fromkeys(missing, others)}
    return {**schema, "properties": properties, "additionalProperties": others}


def _with_schema(tool: Tool, schemas: dict[str, dict[str, Any]]) -> Tool:
    if not isinstance(tool, FunctionTool):
        return tool
    function = tool.function.model_copy(update={"parameters": schemas[tool.function.name]})
    return tool.model_copy(update={"function": function})
