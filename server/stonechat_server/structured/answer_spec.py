"""Chooses how an answer is constrained and read: its grammar, its parser, the text in its prompt.

A server makes one `Structure` from the model's tokenizer. `Structure.specify` combines a request's
tools, `response_format` and reasoning before the prompt is rendered; `AnswerSpec.after_prompt`
follows once the prompt is known.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from stonechat_models import (
    GrammarSpec,
    ReasoningSpec,
    SamplingParams,
    StopScope,
)
from stonechat_server.errors import APIError, unsupported
from stonechat_server.parsers.answer_marks import AnswerMarks, AnswerMarksParser
from stonechat_server.parsers.bare_calls import BareCallParser, may_be_bare
from stonechat_server.parsers.deltas import ContentParser, DeltaParser, ParserFactory
from stonechat_server.parsers.harmony import VISIBLE_HEADERS, HarmonyParser
from stonechat_server.parsers.reasoning import ReasoningMarkers, ReasoningParser
from stonechat_server.parsers.repeated_calls import CallFilter
from stonechat_server.parsers.special_tokens import SpecialTokenFilter
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames, triggers
from stonechat_server.prompt.template_messages import to_template_messages
from stonechat_server.prompt.tool_prompt import (
    describe_customs,
    describe_functions,
    with_modern_calls,
    without_calls,
    without_custom_calls,
    without_tool_messages,
)
from stonechat_server.schema.fields import FORM_FIELDS
from stonechat_server.schema.tools import (
    FunctionDefinition,
    FunctionTool,
    GrammarFormat,
    Tool,
)
from stonechat_server.structured.answer_form import AnswerForm, answer_form
from stonechat_server.structured.argument_schemas import ArgumentSchemas, loosened
from stonechat_server.structured.grammar_checks import GrammarCache
from stonechat_server.structured.harmony_grammar import HarmonyGrammar
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.mark_grammar import MarkGrammar
from stonechat_server.structured.template_traits import UNKNOWN_FORM, TemplateTraits, read_traits
from stonechat_server.structured.tool_grammar import ToolGrammar
from stonechat_server.structured.tool_options import (
    NO_TOOLS,
    ToolOptions,
    parameters,
    read_tool_options,
    tool_path,
)
from stonechat_server.tool_formats import harmony
from stonechat_server.tool_formats.generic import GENERIC
from stonechat_server.tool_formats.layout import HarmonyLayout, ToolFormat, layout_texts

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import TokenizerLike
    from stonechat_server.prompt.message_repairs import TemplateMessage
    from stonechat_server.schema.requests import ChatCompletionRequest
    from stonechat_server.schema.sampling_fields import SamplingFields

KNOWN_TEMPLATES = 32

SHAPING_FIELDS = frozenset(
    {
        *("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
        *("response_format", "structured_outputs", "reasoning_effort", "thinking_budget"),
        *FORM_FIELDS,
    }
)
"""The request fields that may constrain the answer or its reading."""
TOOL_ROLES = frozenset({"tool", "function"})
CALL_KEYS = frozenset({"tool_calls", "function_call"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """How the answer to one request is constrained and read.

    `messages`, `added_text`, `tools` and `variables` are for the chat template; `tools` is empty if
    the template does not render tools. The other fields are for `after_prompt`.
    """

    messages: "list[TemplateMessage]"
    added_text: str = ""
    """What the server itself tells the model: tools and the answer's form."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)
    grammar: GrammarSpec | None = None
    grammar_param: str | None = None
    """The field of the request that `grammar` comes from."""
    unenforced: tuple[str, ...] = ()
    """Paths in the request of what `grammar` leaves out of the schemas of tools."""
    tool_options: ToolOptions | None = None
    format: ToolFormat = GENERIC
    markers: ReasoningMarkers | None = None
    marks: AnswerMarks | None = None
    has_reasoning: bool = True
    budget: int | None = None
    is_open: bool = False
    """Whether the prompt ends inside the assistant's message."""
    special_tokens: Collection[str] = ()
    reads_bare_calls: bool = False
    """Whether an answer that begins with the JSON of a call, without marks, is that call."""
    ends_at_repeat: bool = True
    """Whether a call that repeats an earlier one ends the answer before it."""
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
        markers = all_markers = self.markers
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
        parser_tokens = self._parser_tokens(all_markers)
        hidden_tokens = self._hidden_tokens(parser_tokens, params) if parser_tokens else set()
        names = self._tool_names()
        call_triggers = triggers(self.format, names) if names else ()
        marks = self.marks
        openings = marks.openings if marks else ()
        otherwise = self.format.trigger if names and self.format.opens_in_prompt else ""

        def new_inner() -> DeltaParser:
            parser = ContentParser() if names is None else self._call_parser(names)
            return parser if marks is None else AnswerMarksParser(marks, parser, otherwise)

        def new_parser() -> DeltaParser:
            if all_markers is None:
                parser = new_inner()
            else:  # a model may think although the template says not to
                parser = ReasoningParser(
                    all_markers, starts_open, new_inner, openings, call_triggers
                )
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        opens_at_start = names is not None and names.functions and not self.format.trigger
        params = self._with_stop_rules(
            params,
            scope=_stop_scope(markers, starts_open),
            never_after=call_triggers,
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
            parser: DeltaParser = HarmonyParser(names, inner, self.is_open, self.has_reasoning)
            if names is not None:
                parser = self._with_filter(parser)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        scope = StopScope(VISIBLE_HEADERS, until=(harmony.END,), unless=harmony.CHANNEL)
        params = self._with_stop_rules(
            params,
            scope=scope if self.has_reasoning and not self.is_open else None,
            never_after=triggers(GENERIC, custom) if custom else (),
            never_first="",
        )
        return self._with_grammar(params, None, bool(parser_tokens)), new_parser

    def _call_parser(self, names: ToolNames) -> DeltaParser:
        assert self.tool_options is not None
        parser: DeltaParser = ToolCallParser(
            format=self.format, names=names, has_content=not self.tool_options.is_required
        )
        if self.reads_bare_calls:
            parser = BareCallParser(parser, self.format, names)
        return self._with_filter(parser)

    def _with_filter(self, parser: DeltaParser) -> DeltaParser:
        options = self.tool_options
        assert options is not None
        if options.is_parallel and not self.ends_at_repeat:
            return parser
        return CallFilter(
            parser, is_parallel=options.is_parallel, ends_at_repeat=self.ends_at_repeat
        )

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
        texts += self.marks.texts if self.marks else ()
        if self.tool_options is not None and self.tool_options.functions:
            texts += [self.format.trigger, *layout_texts(self.format.layout)]
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
        bare_calls: bool = True,
        stop_repeated_calls: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._tool_format = tool_format
        self._schema_in_prompt = schema_in_prompt
        self._has_reasoning = has_reasoning
        self._bare_calls = bare_calls
        self._stop_repeated_calls = stop_repeated_calls
        self._special_tokens = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
        self._special_tokens.pop("", None)
        self._checks = GrammarCache()
        self._schemas = ArgumentSchemas(self._checks.reason, LarkWriter(self._special_tokens))
        self._traits = lru_cache(KNOWN_TEMPLATES)(self._read_template)

    def warning(self, template: str) -> str | None:
        """What an operator should know of this chat template, or None."""
        return None if self._traits(template).is_known else UNKNOWN_FORM

    def close(self) -> None:
        """End the checks of grammars that run (blocking, but short)."""
        self._checks.close()

    def specify(
        self,
        request: "ChatCompletionRequest",
        template: str,
        shown: "ChatCompletionRequest | None" = None,
    ) -> AnswerSpec:
        """Choose the form of the answer. `template` is the source of the request's chat template.

        `shown` is the request as the prompt shows it, if its texts differ there. Raises `APIError`
        400 for invalid tools, and for a grammar that cannot be enforced. Raises
        `GrammarPendingError` while a process checks a grammar: call it again then.
        """
        shown = shown or request
        messages = to_template_messages(shown.messages)
        if self._is_plain(request, messages, template):
            return AnswerSpec(messages=messages, is_plain=True)
        tool_options, form = read_tool_options(request), answer_form(request)
        shown_tools, shown_form = tool_options, form
        if shown is not request:
            shown_tools, shown_form = read_tool_options(shown), answer_form(shown)
        traits = self._traits(template)
        self._check(request, tool_options, form)
        unenforced: tuple[str, ...] = ()
        if tool_options is not None:
            tool_options, unenforced = self._schemas.enforce(request, tool_options, traits.format)
        is_open = bool(request.continue_final_message)
        write = partial(self._grammar, budget=request.thinking_budget, is_open=is_open)
        grammar = write(tool_options, form, traits)
        grammar_param = _grammar_param(request, tool_options, form)
        looser = loosened(request, tool_options, unenforced) if tool_options else iter(())
        while grammar is not None and grammar_param is not None:
            try:
                self._checks.check_cost(grammar, grammar_param)
                break
            except APIError:
                options = next(looser, None)
                if options is None:
                    raise
                tool_options, unenforced = options
                grammar = write(tool_options, form, traits)
        offered = shown_tools.offered if shown_tools else ()
        return AnswerSpec(
            messages=_with_rendered_calls(messages, traits),
            added_text=self._added_text(shown_tools, shown_form, traits),
            tools=_template_tools(offered) if traits.renders_tools else [],
            variables=_variables(request),
            grammar=grammar,
            grammar_param=grammar_param,
            unenforced=unenforced,
            tool_options=tool_options,
            format=traits.format,
            markers=traits.markers,
            marks=traits.marks,
            has_reasoning=self._has_reasoning,
            budget=request.thinking_budget,
            is_open=is_open,
            special_tokens=self._special_tokens.keys(),
            reads_bare_calls=(
                self._bare_calls
                and may_be_bare(traits.format)
                and tool_options is not None
                and not tool_options.is_required
                and form is None
                and not is_open
            ),
            ends_at_repeat=self._stop_repeated_calls,
        )

    def text_form(self, request: "SamplingFields") -> AnswerForm | None:
        """The form of a text completion; None for any text. Raises what `specify` raises."""
        form = answer_form(request)
        if form is not None:
            self._checks.check(form.grammar, form.param)
        return form

    def _is_plain(
        self, request: "ChatCompletionRequest", messages: "list[TemplateMessage]", template: str
    ) -> bool:
        """Whether nothing in the request, its messages or the template shapes the answer."""
        fields = request.model_fields_set
        if not fields.isdisjoint(SHAPING_FIELDS):
            return False
        traits = self._traits(template)
        has_marks = traits.markers is not None or traits.marks is not None
        if has_marks or isinstance(traits.format.layout, HarmonyLayout):
            return False
        for message in messages:
            if message["role"] in TOOL_ROLES or not message.keys().isdisjoint(CALL_KEYS):
                return False
        return True

    def _added_text(
        self, tool_options: ToolOptions | None, form: AnswerForm | None, traits: TemplateTraits
    ) -> str:
        """Say what the template does not render: custom tools, functions, the answer's form."""
        offered = tool_options.offered if tool_options else ()
        texts: list[str | None] = []
        if not traits.renders_tools or not traits.is_known:
            texts.append(describe_functions(offered, traits.format))
        texts.append(describe_customs(offered))
        if form is not None and self._schema_in_prompt:
            texts.append(_instruction(form, tool_options))
        return "\n\n".join(text for text in texts if text)

    def _read_template(self, template: str) -> TemplateTraits:
        return read_traits(
            template, self._tool_format, self._is_token, has_reasoning=self._has_reasoning
        )

    def _is_token(self, text: str) -> bool:
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return len(ids) == 1 and self._tokenizer.token_text(ids[0]) == text

    def _grammar(
        self,
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
        traits: TemplateTraits,
        *,
        budget: int | None,
        is_open: bool,
    ) -> GrammarSpec | None:
        answer = form.grammar if form else None
        if isinstance(traits.format.layout, HarmonyLayout):
            if tool_options is None and answer is None and budget is None:
                return None
            writer = LarkWriter(self._special_tokens)
            return HarmonyGrammar(tool_options, writer, answer, budget, is_open).build()
        if tool_options is None and (answer is None or traits.marks is None):
            return answer
        writer = LarkWriter(self._special_tokens)
        marks = MarkGrammar(writer, traits.marks, traits.markers)
        return ToolGrammar(tool_options or NO_TOOLS, traits.format, writer, answer, marks).build()

    def _check(
        self,
        request: "ChatCompletionRequest",
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
    ) -> None:
        """Check the form of the answer, and the grammar of each custom tool, on its own.

        Raises `APIError` 400 that names the part. The joined grammar could not tell the part.
        """
        if form is not None:
            self._checks.check(form.grammar, form.param)
        if tool_options is None:
            return
        for i, tool in enumerate(request.tools or ()):
            self._check_tool(tool, tool_path(request, i))

    def _check_tool(self, tool: Tool, where: str) -> None:
        if not isinstance(tool, FunctionTool) and isinstance(tool.custom.format, GrammarFormat):
            grammar = tool.custom.format.grammar
            spec = GrammarSpec(grammar.syntax, grammar.definition)
            self._checks.check(spec, f"{where}.format.grammar.definition")


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


def _with_rendered_calls(
    messages: "list[TemplateMessage]", traits: TemplateTraits
) -> "list[TemplateMessage]":
    """Write as text the calls and results that the template does not render."""
    messages = with_modern_calls(messages)
    if traits.renders_calls:
        return without_custom_calls(messages)
    if traits.renders_tools:
        return without_calls(messages, traits.format)
    return without_tool_messages(messages, traits.format)


def _template_tools(offered: Sequence[Tool]) -> list[dict[str, Any]]:
    """Function tools with the keys that the client gave them, without unknown keys and nulls."""
    tools = []
    for tool in offered:
        if isinstance(tool, FunctionTool):
            given = FunctionDefinition.model_fields.keys() & tool.function.model_fields_set
            function = tool.function.model_dump(include=given, exclude_none=True)
            tools.append({"type": "function", "function": function})
    return tools


def _variables(request: "ChatCompletionRequest") -> dict[str, Any]:
    """The variables with which templates switch reasoning on and off."""
    effort = request.reasoning_effort
    if effort is None:
        return {}
    is_thinking = effort != "none"
    return {"reasoning_effort": effort, "enable_thinking": is_thinking, "thinking": is_thinking}
