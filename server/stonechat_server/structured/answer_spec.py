"""How one answer is constrained and read: its grammar, its parser, what its prompt needs."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from stonechat_models import GrammarSpec, ReasoningSpec, SamplingParams, StopScope
from stonechat_server.errors import unsupported
from stonechat_server.parsers.answer_marks import AnswerMarks, AnswerMarksParser
from stonechat_server.parsers.bare_calls import BareCallParser
from stonechat_server.parsers.deltas import ContentParser, DeltaParser, ParserFactory
from stonechat_server.parsers.harmony import HarmonyParser
from stonechat_server.parsers.muse import MuseParser
from stonechat_server.parsers.reasoning import ReasoningMarkers, ReasoningParser
from stonechat_server.parsers.repeated_calls import CallFilter
from stonechat_server.parsers.special_tokens import SpecialTokenFilter
from stonechat_server.parsers.tool_calls import ToolCallParser, ToolNames, triggers
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.structured.tool_options import ToolOptions, parameters
from stonechat_server.tool_formats import harmony, muse
from stonechat_server.tool_formats.hermes import GENERIC
from stonechat_server.tool_formats.layout import ToolFormat, layout_texts

KNOWN_TEMPLATES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSpec:
    """How the answer to one request is constrained and read.

    `messages`, `added_text`, `tools` and `variables` are for the chat template; `tools` is empty if
    the template does not render tools. The other fields are for `after_prompt`.
    """

    messages: list[TemplateMessage]
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
        if self.format.has_messages:
            return self._before_messages(params)
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

        def new_parser() -> DeltaParser:
            inner = partial(self._answer_parser, names)
            if all_markers is None:
                parser = inner()
            else:  # a model may think although the template says not to
                openings = self.marks.openings if self.marks else ()
                parser = ReasoningParser(all_markers, starts_open, inner, openings, call_triggers)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        opens_at_start = names is not None and names.functions and not self.format.trigger
        params = self._with_stop_rules(
            params,
            scope=_stop_scope(markers, starts_open),
            never_after=call_triggers,
            never_first=self.format.first if opens_at_start else "",
        )
        return self._with_grammar(params, reasoning, bool(parser_tokens)), new_parser

    def _answer_parser(self, names: ToolNames | None) -> DeltaParser:
        """A parser of what follows the reasoning. `names` are those of the tools, if any."""
        parser = ContentParser() if names is None else self._call_parser(names)
        if self.marks is None:
            return parser
        otherwise = self.format.trigger if names and self.format.opens_in_prompt else ""
        return AnswerMarksParser(self.marks, parser, otherwise)

    def _before_messages(self, params: SamplingParams) -> tuple[SamplingParams, ParserFactory]:
        """`after_prompt` for a format whose answers consist of messages."""
        names = self._tool_names()
        custom = ToolNames(functions=(), custom=names.custom) if names else None
        is_muse = self.format.has_recipients
        parser_tokens = set(self.special_tokens) & {*(muse if is_muse else harmony).TOKENS}
        if is_muse:
            parser_tokens |= self._parser_tokens(None)
        hidden_tokens = self._hidden_tokens(parser_tokens, params)

        def new_inner(is_to_tool: bool = False) -> DeltaParser:
            if is_to_tool and names is not None:
                return ToolCallParser(format=self.format, names=names)
            if custom is not None and custom.custom:
                return ToolCallParser(format=GENERIC, names=custom)
            return ContentParser()

        def new_parser() -> DeltaParser:
            options = (names, new_inner(), self.is_open, self.has_reasoning)
            parser: DeltaParser = HarmonyParser(*options)
            if is_muse:
                parser = MuseParser(*options, new_inner=new_inner)
            if names is not None:
                parser = self._with_filter(parser)
            return SpecialTokenFilter(hidden_tokens, parser) if hidden_tokens else parser

        params = self._with_stop_rules(
            params,
            scope=self._visible_messages() if self.has_reasoning and not self.is_open else None,
            never_after=triggers(GENERIC, custom) if custom else (),
            never_first="",
        )
        return self._with_grammar(params, None, bool(parser_tokens)), new_parser

    def _visible_messages(self) -> StopScope:
        """The messages to the user."""
        if self.format.has_recipients:
            return StopScope(muse.VISIBLE_HEADERS, until=(muse.END,), unless=muse.RECIPIENT_KEY)
        return StopScope(harmony.VISIBLE_HEADERS, until=(harmony.END,), unless=harmony.CHANNEL)

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


def _stop_scope(markers: ReasoningMarkers | None, starts_open: bool) -> StopScope | None:
    if markers is None:
        return None
    return StopScope(after=(markers.end,), unless="" if starts_open else markers.start)
