"""Calls of one function tool in several layouts, as the grammar lets them be written."""

import json
import random
import re
from typing import Any

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.compiler import GrammarCompiler
from stonechat_models.grammar.source import check_grammar
from stonechat_models.types import GrammarSpec
from stonechat_server.parsers.deltas import ToolCallDelta
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames
from stonechat_server.schema.tools import FunctionTool
from stonechat_server.structured.argument_schemas import ArgumentSchemas
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import ToolOptions
from stonechat_server.structured.tool_options import parameters as arguments_schema
from stonechat_server.tool_formats.layout import TagLayout, ToolFormat
from stonechat_server.tool_formats.select import FORMATS
from tests.models.byte_vocabulary import ByteVocabulary
from tests.models.walks import PADDED_VOCAB, allowed_ids, allows, walk

VOCABULARY = ByteVocabulary()
COMPILER = GrammarCompiler(VOCABULARY, PADDED_VOCAB)
LAYOUTS = ("hermes", "qwen_coder", "pythonic")
"""One format for each kind of layout: JSON, tags, keywords."""


def reason_against(spec: GrammarSpec) -> str | None:
    try:
        check_grammar(spec)
    except GrammarError as error:
        return str(error)
    return None


def enforced(
    parameters: Any, name: str = "f", format: ToolFormat | None = None
) -> tuple[FunctionTool, list[str]]:
    """Return the tool as its grammar sees it, and the paths of what is left out."""
    function = {"name": name, "parameters": parameters}
    tool = FunctionTool.model_validate({"type": "function", "function": function})
    source = json.dumps(arguments_schema(tool))
    found = ArgumentSchemas(reason_against)._choose(source, False, format)
    function = {"name": name, "parameters": found.schema}
    tool = FunctionTool.model_validate({"type": "function", "function": function})
    return tool, list(found.left_out)


def call_grammar(tool: FunctionTool, layout: str) -> GrammarSpec:
    options = ToolOptions(offered=(tool,), callable=(tool,), is_required=True, is_parallel=False)
    return ToolGrammar(options, FORMATS[layout], LarkWriter({})).build()


def arguments(tool: FunctionTool, layout: str, text: str) -> Any:
    """Read the arguments of the one call in `text`."""
    name, schema = tool.function.name, tool.function.parameters or {}
    names = ToolNames(functions=[name], custom=[], schemas={name: schema})
    deltas = ToolCallParser(format=FORMATS[layout], names=names).feed(text, finished=True)
    return json.loads("".join(d.arguments for d in deltas if isinstance(d, ToolCallDelta)))


def calls(tool: FunctionTool, layout: str, count: int = 3) -> list[Any]:
    compiled = COMPILER.compile(call_grammar(tool, layout))
    rng, parts = random.Random(layout), FORMATS[layout].layout
    ends = [parts.after_value] if isinstance(parts, TagLayout) else []
    walks = (walk(compiled.new_constraint(), VOCABULARY, rng, 250, ends) for _ in range(count))
    found = [text.decode() for text in walks if text is not None]
    # A number such as 1e999 is valid JSON, but no float.
    return [arguments(tool, layout, t) for t in found if not re.search(r"\d[eE]\+?\d{3}", t)]


def is_allowed(tool: FunctionTool, layout: str, text: str) -> bool:
    """Return whether `text` is a whole answer."""
    constraint = COMPILER.compile(call_grammar(tool, layout)).new_constraint()
    for token_id in VOCABULARY.encode(text):
        if constraint.is_finished or not allows(constraint, token_id):
            return False
        constraint.accept(token_id)
    return constraint.is_finished or not VOCABULARY.eos_token_ids.isdisjoint(
        allowed_ids(constraint)
    )
