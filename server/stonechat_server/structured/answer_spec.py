"""Chooses how an answer is constrained and read: its grammar, its parser, the text in its prompt.

A server makes one `Structure` from the model's tokenizer. `Structure.specify` combines a request's
tools, `response_format` and reasoning before the prompt is rendered; `AnswerSpec.after_prompt`
follows once the prompt is known.
"""

import dataclasses
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stonechat_models import (
    GrammarError,
    GrammarSpec,
    ReasoningSpec,
    SamplingParams,
    StopScope,
)
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
KNOWN_TEMPLATES = 32

SHAPING_FIELDS = frozenset(
    {
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "structured_outputs", "reasoning_effort", "thinking_budget"),
    }
)
"""The request fields that may constrain the answer or its reading."""
TOOL_ROLES = frozenset({"tool", "function"})
CALL_KEYS = frozenset({"tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What the source of a chat template shows about the model's answers."""

    renders_tools: bool
    format: ToolFormat
    markers: ReasoningMarkers | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """How the answer to one request is constrained and read.

    `messages`, `tools` and `variables` are for the chat template; `tools` is empty if the template
    does not render tools. The other fields are for `after_prompt`.
    """

    messages: "list[TemplateMessage]"
    tools: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    grammar: GrammarSpec | None = None
    grammar_param: str | None = None
    """The field of the request that `grammar` comes from."""
    tool_options: ToolOptions | None = None
    format: ToolFormat = GENERIC
    markers: ReasoningMarkers | None = None
    has_reasoning: bool = True
    budget: int | None = None
    is_open: bool = False
    """Whether the prompt ends inside the assistant's message."""
    special_tokens: Collection[str] = ()
    is_plain: bool = False
    """True for free text that is read as content only: `after_prompt` would change nothing."""

    def after_prompt(
        self, prompt: str, params: SamplingParams
    ) -> tuple[SamplingParams, ParserFactory]:
        """Complete the sampling parameters, and choose the parser of the answer.

        The end of `prompt` shows whether reasoning has begun. Raises `APIError` 400 for a budget if
        the model has no reasoning markers.
        """
        if isinstance(self.format.layout, HarmonyLayout):
            return self._after_harmony_prompt(params)
        text = prompt.rstrip()
        markers = self.markers
        if markers is not None and text.endswith(markers.end):  # the template has switched it off
            markers = None
        elif markers is None and self.budget is not None:
            raise unsupported(
                "thinking_budget",
                "This model has no reasoning markers, so thinking_budget cannot be enforced.",
            )
        starts_open = markers is not None and text.endswith(markers.start)
        reasoning = None
        if markers is not None and (self.grammar is not None or self.budget is not None):
            reasoning = ReasoningSpec(markers.start, markers.end, starts_open, self.budget)
        parser_tokens = self._parser_tokens(markers)
        hidden_tokens = self._hidden_tokens(parser_tokens, params) if parser_tokens else set()
        names = self._tool_names()

        def new_parser() -> DeltaParser:
            parser: DeltaParser = ContentParser()
            if names is not None:
                parser = ToolCallParser(format=self.format, names=names)
            if markers is not None:
                parser = ReasoningParser(markers, starts_open, parser)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        opens_at_start = names is not None and names.functions and not self.format.trigger
        params = self._with_stop_rules(
            params,
            scope=_stop_scope(markers, starts_open),
            never_after=triggers(self.format, names) if names else (),
            never_first=self.format.first if opens_at_start else "",
        )
        return self._with_grammar(params, reasoning, bool(parser_tokens)), new_parser

    def _after_harmony_prompt(self, params: SamplingParams) -> tuple[SamplingParams, ParserFactory]:
        names = self._tool_names()
        custom = ToolNames(functions=(), custom=names.custom) if names else None
        parser_tokens = set(self.special_tokens) & set(harmony.TOKENS)
        hidden_tokens = self._hidden_tokens(parser_tokens, params)

        def new_parser() -> DeltaParser:
            inner: DeltaParser = ContentParser()
            if custom is not None and custom.custom:
                inner = ToolCallParser(format=GENERIC, names=custom)
            parser = HarmonyParser(names, inner, self.is_open, self.has_reasoning)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        scope = StopScope(VISIBLE_HEADERS, until=(harmony.END,), unless=harmony.CHANNEL)
        params = self._with_stop_rules(
            params,
            scope=scope if self.has_reasoning and not self.is_open else None,
            never_after=triggers(GENERIC, custom) if custom else (),
            never_first="",
        )
        return self._with_grammar(params, None, bool(parser_tokens)), new_parser

    def _tool_names(self) -> ToolNames | None:
        options = self.tool_options
        if options is None:
            return None
        return ToolNames(
            functions=[tool.function.name for tool in options.functions],
            custom=[tool.custom.name for tool in options.customs],
            schemas={tool.function.name: parameters(tool) for tool in options.functions},
        )

    def _parser_tokens(self, markers: ReasoningMarkers | None) -> set[str]:
        """The special tokens that the parser must see."""
        texts = [markers.start, markers.end] if markers else []
        if self.tool_options is not None and self.tool_options.functions:
            texts += [self.format.trigger, *dataclasses.asdict(self.format.layout).values()]
        return {token for token in self.special_tokens for text in texts if token in text}

    def _hidden_tokens(self, parser_tokens: set[str], params: SamplingParams) -> set[str]:
        """The special tokens that the parser must remove, as it needs others in the text."""
        return set(self.special_tokens) - parser_tokens if params.skip_special_tokens else set()

    def _with_stop_rules(
        self,
        params: SamplingParams,
        *,
        scope: StopScope | None,
        never_after: tuple[str, ...],
        never_first: str,
    ) -> SamplingParams:
        """Say where stop strings count. They never count within calls."""
        if params.stop is None:
            return params
        if self.tool_options is not None and self.tool_options.is_required:
            return replace(params, stop=None)
        rules = replace(params.stop, scope=scope, never_after=never_after, never_first=never_first)
        return replace(params, stop=rules)

    def _with_grammar(
        self, params: SamplingParams, reasoning: ReasoningSpec | None, keeps_special_tokens: bool
    ) -> SamplingParams:
        return replace(
            params,
            grammar=self.grammar,
            reasoning=reasoning,
            skip_special_tokens=params.skip_special_tokens and not keeps_special_tokens,
        )


class Structure:
    """Makes the `AnswerSpec` of a request.

    `tool_format` is a name in `FORMATS`, or `auto`: the format that the request's template shows.
    Without `has_reasoning`, reasoning is part of the content.
    """

    def __init__(
        self,
        tokenizer: "TokenizerLike",
        tool_format: str = "auto",
        *,
        schema_in_prompt: bool = True,
        has_reasoning: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._tool_format = tool_format
        self._schema_in_prompt = schema_in_prompt
        self._has_reasoning = has_reasoning
        self._special_tokens = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
        self._special_tokens.pop("", None)
        self._checks = GrammarCache()
        self._traits = lru_cache(KNOWN_TEMPLATES)(self._read_template)

    def specify(self, request: "ChatCompletionRequest", template: str) -> AnswerSpec:
        """Choose the form of the answer. `template` is the source of the request's chat template.

        Raises `APIError` 400 for invalid tools, and for a grammar that cannot be enforced.
        """
        messages = to_template_messages(request.messages)
        if self._is_plain(request, messages, template):
            return AnswerSpec(messages=messages, is_plain=True)
        tool_options, form = read_tool_options(request), answer_form(request)
        traits = self._traits(template)
        self._check(request, tool_options, form)
        is_open = bool(request.continue_final_message)
        offered = tool_options.offered if tool_options else ()
        return AnswerSpec(
            messages=self._with_tool_texts(messages, tool_options, form, traits),
            tools=_template_tools(offered) if traits.renders_tools else [],
            variables=_variables(request),
            grammar=self._grammar(
                tool_options, form, traits.format, budget=request.thinking_budget, is_open=is_open
            ),
            grammar_param=_grammar_param(request, tool_options, form),
            tool_options=tool_options,
            format=traits.format,
            markers=traits.markers,
            has_reasoning=self._has_reasoning,
            budget=request.thinking_budget,
            is_open=is_open,
            special_tokens=self._special_tokens.keys(),
        )

    def _is_plain(
        self, request: "ChatCompletionRequest", messages: "list[TemplateMessage]", template: str
    ) -> bool:
        """Whether nothing in the request, its messages or the template shapes the answer."""
        fields = request.model_fields_set
        if not fields.isdisjoint(SHAPING_FIELDS):
            return False
        traits = self._traits(template)
        if traits.markers is not None or isinstance(traits.format.layout, HarmonyLayout):
            return False
        for message in messages:
            if message["role"] in TOOL_ROLES or not message.keys().isdisjoint(CALL_KEYS):
                return False
        return True

    def _with_tool_texts(
        self,
        messages: "list[TemplateMessage]",
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
        traits: TemplateTraits,
    ) -> "list[TemplateMessage]":
        """Add to the messages what the template does not render."""
        offered = tool_options.offered if tool_options else ()
        texts: list[str | None] = [describe_customs(offered)]
        messages = with_modern_calls(messages)
        if traits.renders_tools:
            messages = without_custom_calls(messages)
        else:
            messages = without_tool_messages(messages, traits.format)
            texts.insert(0, describe_functions(offered, traits.format))
        if form is not None and self._schema_in_prompt:
            texts.append(_instruction(form, tool_options))
        if any(texts):
            messages = with_system_text(messages, "\n\n".join(text for text in texts if text))
        return messages

    def _read_template(self, template: str) -> TemplateTraits:
        renders_tools = re.search(r"\btools\b", template) is not None
        if self._tool_format != "auto":
            format = FORMATS[self._tool_format]
        else:
            format = select_format(template) if renders_tools else GENERIC
        markers = find_markers(template, self._is_token) if self._has_reasoning else None
        return TemplateTraits(renders_tools, format, markers)

    def _is_token(self, text: str) -> bool:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return len(ids) == 1 and self._tokenizer.token_text(ids[0]) == text

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
