"""Chooses how an answer is written and read: its grammar, its parser and the text in its prompt.

A server makes one `Structure` from the model's tokenizer. `specify` combines a request's tools,
`response_format` and reasoning before the prompt is rendered; `read` follows after that.
"""

import dataclasses
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stonechat_models import GrammarError, GrammarSpec, ReasoningSpec, StopScope
from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.parsers.deltas import ContentParser, DeltaParser, ParserFactory
from stonechat_server.parsers.harmony import VISIBLE_HEADERS, HarmonyParser
from stonechat_server.parsers.reasoning import ReasoningMarkers, ReasoningParser, find_markers
from stonechat_server.parsers.special_tokens import SpecialTokenFilter
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames, triggers
from stonechat_server.prompt.template_messages import to_template_messages
from stonechat_server.prompt.tool_prompt import (
    describe_customs,
    describe_functions,
    with_modern_calls,
    with_system_text,
    without_custom_calls,
    without_tool_messages,
)
from stonechat_server.schema.tools import CustomTool, FunctionTool, GrammarFormat, Tool
from stonechat_server.structured.answer_form import AnswerForm, answer_form
from stonechat_server.structured.harmony_grammar import HarmonyGrammar
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import (
    ToolOptions,
    parameters,
    read_tool_options,
    tool_path,
)
from stonechat_server.tool_formats import harmony
from stonechat_server.tool_formats.generic import GENERIC
from stonechat_server.tool_formats.layout import HarmonyLayout, ToolFormat
from stonechat_server.tool_formats.select import FORMATS, select_format

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import TokenizerLike
    from stonechat_server.prompt.chat_template import TemplateMessage
    from stonechat_server.schema.requests import ChatCompletionRequest

CHECKED_GRAMMARS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """The result of `Structure.specify`. `tools` is empty if the template does not render tools."""

    messages: "list[TemplateMessage]"
    tools: list[dict[str, Any]]
    variables: dict[str, Any]
    grammar: GrammarSpec | None
    grammar_param: str | None
    tool_options: ToolOptions | None
    format: ToolFormat
    markers: ReasoningMarkers | None
    budget: int | None
    is_open: bool
    """Whether the prompt ends inside the assistant's message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How the answer to one prompt is generated and read."""

    reasoning: ReasoningSpec | None
    keep_special_tokens: bool
    new_parser: ParserFactory
    is_stoppable: bool
    """False if the answer consists of calls only. Stop strings do not apply within calls."""
    unstoppable_after: tuple[str, ...]
    unstoppable_first: str
    stop_scope: StopScope | None
    """This field and the two above: see `SamplingParams`."""


@dataclass(slots=True)
class Structure:
    """Makes an `AnswerSpec` from a request, and a `Reading` from its prompt.

    `tool_format` is a name in `FORMATS`, or `auto`: the format that the request's template shows.
    """

    tokenizer: "TokenizerLike"
    tool_format: str = "auto"
    schema_in_prompt: bool = True
    has_reasoning: bool = True
    """False: reasoning is part of the content."""
    _special_tokens: dict[str, int] = field(init=False)
    _checks: "GrammarCache" = field(init=False)

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        self._special_tokens = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
        self._special_tokens.pop("", None)
        self._checks = GrammarCache()

    def specify(self, request: "ChatCompletionRequest", template: str) -> AnswerSpec:
        """Choose the form of the answer. `template` is the source of the request's chat template.

        Raises `APIError` 400 for invalid tools, and for a grammar that cannot be enforced.
        """
        tool_options, form = read_tool_options(request), answer_form(request)
        renders_tools = re.search(r"\btools\b", template) is not None
        format = self._format(template if renders_tools else "")
        self._check(request, tool_options, form)
        messages = with_modern_calls(to_template_messages(request.messages))
        offered = tool_options.offered if tool_options else ()
        texts: list[str | None] = [describe_customs(offered)]
        if renders_tools:
            messages = without_custom_calls(messages)
        else:
            messages = without_tool_messages(messages, format)
            texts.insert(0, describe_functions(offered, format))
        if form is not None and self.schema_in_prompt:
            texts.append(_instruction(form, tool_options))
        if any(texts):
            messages = with_system_text(messages, "\n\n".join(text for text in texts if text))
        is_open = bool(request.continue_final_message)
        return AnswerSpec(
            messages=messages,
            tools=_template_tools(offered) if renders_tools else [],
            variables=_variables(request),
            grammar=self._grammar(
                tool_options, form, format, budget=request.thinking_budget, is_open=is_open
            ),
            grammar_param=_grammar_param(request, tool_options, form),
            tool_options=tool_options,
            format=format,
            markers=self._markers(template),
            budget=request.thinking_budget,
            is_open=is_open,
        )

    def read(self, spec: AnswerSpec, prompt: str, skip_special_tokens: bool = True) -> Reading:
        """Choose how to read the answer. The end of `prompt` shows whether reasoning has begun.

        Raises `APIError` 400 for a budget if the model has no reasoning markers.
        """
        if isinstance(spec.format.layout, HarmonyLayout):
            return self._read_harmony(spec, skip_special_tokens)
        text = prompt.rstrip()
        markers = spec.markers
        if markers is not None and text.endswith(markers.end):  # the template has switched it off
            markers = None
        elif markers is None and spec.budget is not None:
            raise unsupported(
                "thinking_budget",
                "This model has no reasoning markers, so thinking_budget cannot be enforced.",
            )
        starts_open = markers is not None and text.endswith(markers.start)
        reasoning = None
        if markers is not None and (spec.grammar is not None or spec.budget is not None):
            reasoning = ReasoningSpec(markers.start, markers.end, starts_open, spec.budget)
        parser_tokens = self._parser_tokens(spec, markers)
        hidden_tokens = (
            self._special_tokens.keys() - parser_tokens
            if parser_tokens and skip_special_tokens
            else set()
        )

        def new_parser() -> DeltaParser:
            parser: DeltaParser = ContentParser()
            if spec.tool_options is not None:
                parser = ToolCallParser(format=spec.format, names=_names(spec.tool_options))
            if markers is not None:
                parser = ReasoningParser(markers, starts_open, parser)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        tools, format = spec.tool_options, spec.format
        names = _names(tools) if tools is not None else None
        return Reading(
            reasoning=reasoning,
            keep_special_tokens=bool(parser_tokens),
            new_parser=new_parser,
            is_stoppable=tools is None or not tools.is_required,
            unstoppable_after=triggers(format, names) if names else (),
            unstoppable_first=format.first
            if names and names.functions and not format.trigger
            else "",
            stop_scope=_stop_scope(markers, starts_open),
        )

    def _read_harmony(self, spec: AnswerSpec, skip_special_tokens: bool) -> Reading:
        tools = spec.tool_options
        names = _names(tools) if tools is not None else None
        custom = ToolNames(functions=(), custom=names.custom) if names else None
        parser_tokens = self._special_tokens.keys() & set(harmony.TOKENS)
        hidden_tokens = (
            self._special_tokens.keys() - parser_tokens if skip_special_tokens else set()
        )

        def new_parser() -> DeltaParser:
            inner: DeltaParser = ContentParser()
            if custom is not None and custom.custom:
                inner = ToolCallParser(format=GENERIC, names=custom)
            parser = HarmonyParser(names, inner, spec.is_open, self.has_reasoning)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        scope = StopScope(VISIBLE_HEADERS, until=(harmony.END,), unless=harmony.CHANNEL)
        return Reading(
            reasoning=None,
            keep_special_tokens=bool(parser_tokens),
            new_parser=new_parser,
            is_stoppable=tools is None or not tools.is_required,
            unstoppable_after=triggers(GENERIC, custom) if custom else (),
            unstoppable_first="",
            stop_scope=scope if self.has_reasoning and not spec.is_open else None,
        )

    def _format(self, template: str) -> ToolFormat:
        if self.tool_format != "auto":
            return FORMATS[self.tool_format]
        return select_format(template) if template else GENERIC

    def _markers(self, template: str) -> ReasoningMarkers | None:
        return find_markers(template, self._is_token) if self.has_reasoning else None

    def _is_token(self, text: str) -> bool:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return len(ids) == 1 and self.tokenizer.token_text(ids[0]) == text

    def _parser_tokens(self, spec: AnswerSpec, markers: ReasoningMarkers | None) -> set[str]:
        """The special tokens that the parser must see."""
        texts = [markers.start, markers.end] if markers else []
        layout = spec.format.layout
        if spec.tool_options is not None and spec.tool_options.functions:
            texts += [spec.format.trigger, *dataclasses.asdict(layout).values()]
        return {token for token in self._special_tokens for text in texts if token in text}

    def _grammar(
        self,
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
        format: ToolFormat,
        *,
        budget: int | None,
        is_open: bool,
    ) -> GrammarSpec | None:
        answer = form.grammar if form else None
        if isinstance(format.layout, HarmonyLayout):
            if tool_options is None and answer is None and budget is None:
                return None
            writer = LarkWriter(self._special_tokens)
            return HarmonyGrammar(tool_options, writer, answer, budget, is_open).build()
        if tool_options is None:
            return answer
        writer = LarkWriter(self._special_tokens)
        return ToolGrammar(tool_options, format, writer, answer).build()

    def _check(
        self,
        request: "ChatCompletionRequest",
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
    ) -> None:
        """Check each grammar of the request on its own.

        Raises `APIError` 400 that names the part. The joined grammar could not tell the part.
        """
        if form is not None:
            self._checks.check(form.grammar, form.param)
        if tool_options is None:
            return
        for i, tool in enumerate(request.tools or ()):
            self._check_tool(tool, tool_path(request, i))

    def _check_tool(self, tool: Tool, where: str) -> None:
        if isinstance(tool, FunctionTool):
            schema = GrammarSpec("json_schema", json.dumps(parameters(tool)))
            self._checks.check(schema, f"{where}.parameters")
        elif isinstance(tool.custom.format, GrammarFormat):
            grammar = tool.custom.format.grammar
            spec = GrammarSpec(grammar.syntax, grammar.definition)
            self._checks.check(spec, f"{where}.format.grammar.definition")


class GrammarCache:
    """Remembers which grammars can be enforced, and why others cannot. Thread-safe."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[GrammarSpec, str | None] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec, param: str) -> None:
        """Check a grammar. Raises `APIError` 400 that names `param` and the reason."""
        with self._lock:
            is_checked = spec in self._reasons
            reason = self._reasons.get(spec)
        if not is_checked:
            reason = _reason(spec)
            with self._lock:
                self._reasons[spec] = reason
                if len(self._reasons) > CHECKED_GRAMMARS:
                    self._reasons.popitem(last=False)
        if reason is not None:
            raise _refusal(param, reason)


def _reason(spec: GrammarSpec) -> str | None:
    from stonechat_models import check_grammar  # imports torch, which would slow down the start

    try:
        check_grammar(spec)
    except GrammarError as error:
        return str(error)
    return None


def _refusal(param: str, reason: str) -> APIError:
    return invalid(param, f"This cannot be enforced: {reason}", code="invalid_grammar")


def _instruction(form: AnswerForm, tool_options: ToolOptions | None) -> str | None:
    if form.instruction is None or tool_options is None:
        return form.instruction
    return f"When you call no tool: {form.instruction}"


def _grammar_param(
    request: "ChatCompletionRequest", tool_options: ToolOptions | None, form: AnswerForm | None
) -> str | None:
    """The field that an error in the joined grammar names; its parts have been checked before."""
    if tool_options is None:
        return form.param if form is not None else None
    return "tools" if request.functions is None else "functions"


def _stop_scope(markers: ReasoningMarkers | None, starts_open: bool) -> StopScope | None:
    if markers is None:
        return None
    return StopScope(after=(markers.end,), unless="" if starts_open else markers.start)


def _names(options: ToolOptions) -> ToolNames:
    return ToolNames(
        functions=[tool.function.name for tool in options.functions],
        custom=[tool.custom.name for tool in options.customs],
        schemas={tool.function.name: parameters(tool) for tool in options.functions},
    )


def _template_tools(offered: Sequence[Tool]) -> list[dict[str, Any]]:
    """Function tools as templates expect them, with every key present."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or {"type": "object", "properties": {}},
            },
        }
        for tool in offered
        if not isinstance(tool, CustomTool)
    ]


def _variables(request: "ChatCompletionRequest") -> dict[str, Any]:
    """The variables with which templates switch reasoning on and off."""
    effort = request.reasoning_effort
    if effort is None:
        return {}
    is_thinking = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": is_thinking, "thinking": is_thinking}
