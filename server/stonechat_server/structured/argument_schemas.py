"""Chooses the JSON schema that the arguments of each function tool must follow.

With `strict: true` it is the tool's own schema, or the request is refused. Any other tool never
refuses a request: what cannot be enforced is left out of its schema, and named.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from stonechat_models import CostlyGrammarError, GrammarSpec, plain_schema, relax_schema
from stonechat_server.errors import invalid
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.tools import FunctionTool, Tool
from stonechat_server.structured.records import read_record
from stonechat_server.structured.tool_options import (
    ToolOptions,
    allows_objects,
    parameters,
    tool_name,
    tool_path,
)

KNOWN_SCHEMAS = 512


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
    `CostlyGrammarError` for a grammar that takes too long to compile.
    """

    def __init__(self, reason_against: Callable[[GrammarSpec], str | None]) -> None:
        self._reason_against = reason_against
        self._lookup = lru_cache(KNOWN_SCHEMAS)(self._choose)

    def enforce(
        self, request: ChatCompletionRequest, options: ToolOptions
    ) -> tuple[ToolOptions, tuple[str, ...]]:
        """Return the options, whose callable tools have schemas that can be enforced.

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
            found = self._lookup(source, tool.function.strict is True)
            if found.reason is not None:
                raise invalid(
                    where, f"This cannot be enforced: {found.reason}", code="invalid_grammar"
                )
            schemas[tool.function.name] = found.schema
            if tool.function.name in callable_names:
                names += [where + path for path in found.left_out]
        callable_ = tuple(_with_schema(tool, schemas) for tool in options.callable)
        return replace(options, callable=callable_), tuple(names)

    def _choose(self, source: str, is_strict: bool) -> ArgumentSchema:
        schema = json.loads(source)
        if is_strict:
            spec = GrammarSpec("json_schema", json.dumps({**schema, "type": "object"}))
            try:
                reason = self._reason_against(spec)
            except CostlyGrammarError as error:
                reason = str(error)
            return ArgumentSchema({} if reason else _arguments_form(schema), (), reason)
        left_out = [] if allows_objects(schema) else [".type"]
        schema, paths = relax_schema({**schema, "type": "object"}, self._is_enforceable)
        left_out += ["".join(map(_step, path)) for path in paths]
        return ArgumentSchema(_arguments_form(schema), tuple(left_out))

    def _is_enforceable(self, schema: dict[str, Any]) -> bool:
        """Whether the whole can be enforced, and each argument too, which may be written apart."""
        if self._reason_against(GrammarSpec("json_schema", json.dumps(schema))) is not None:
            return False
        plain = _with_required(plain_schema(schema))
        record = read_record(plain, lambda key: True)
        if record is None or not record.properties:
            return True
        apart = {**record.schemas()[0], "required": list(record.properties)}
        apart["$defs"] = plain.get("$defs", {})
        return self._reason_against(GrammarSpec("json_schema", json.dumps(apart))) is None


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
