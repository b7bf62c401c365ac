"""Chooses how an answer is constrained and read.

A server makes one `Structure` from the model's tokenizer. `Structure.specify` combines a request's
tools, `response_format` and reasoning before the prompt is rendered; `AnswerSpec.after_prompt`
follows once the prompt is known.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stonechat_models import GrammarSpec
from stonechat_server.errors import APIError
from stonechat_server.parsers.bare_calls import may_be_bare
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.template_messages import to_template_messages
from stonechat_server.prompt.template_traits import UNKNOWN_FORM, TemplateTraits, read_traits
from stonechat_server.prompt.tool_prompt import (
    describe_customs,
    describe_functions,
    with_modern_calls,
    without_calls,
    without_custom_calls,
    without_tool_messages,
)
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.schema.tools import FunctionDefinition, FunctionTool, GrammarFormat, Tool
from stonechat_server.structured.answer_form import AnswerForm, answer_form
from stonechat_server.structured.answer_spec import AnswerSpec
from stonechat_server.structured.argument_schemas import ArgumentSchemas, loosened
from stonechat_server.structured.grammar_checks import GrammarCache
from stonechat_server.structured.lark import LarkWriter
from stonechat_server.structured.message_grammar import HarmonyGrammar, MuseGrammar
from stonechat_server.structured.tool_grammar import MarkGrammar, ToolGrammar
from stonechat_server.structured.tool_options import (
    NO_TOOLS,
    ToolOptions,
    read_tool_options,
    tool_path,
)

if TYPE_CHECKING:
    from stonechat_models import Tokenizer

KNOWN_TEMPLATES = 32


class Structure:
    """Makes the `AnswerSpec` of a request.

    `tool_format` is a name in `FORMATS`, or `auto`: the format that the request's template shows.
    Without `has_reasoning`, reasoning is part of the content.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
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
        self.traits = lru_cache(KNOWN_TEMPLATES)(self._read_template)
        """What the source of a chat template shows about the answers."""

    def warning(self, template: str) -> str | None:
        """What an operator should know of this chat template, or None."""
        return None if self.traits(template).is_known else UNKNOWN_FORM

    def close(self) -> None:
        """End the checks of grammars that run (blocking, but short)."""
        self._checks.close()

    def specify(
        self,
        request: ChatCompletionRequest,
        template: str,
        shown: ChatCompletionRequest | None = None,
    ) -> AnswerSpec:
        """Choose the form of the answer. `template` is the source of the request's chat template.

        `shown` is the request as the prompt shows it, if its texts differ there. Raises `APIError`
        400 for invalid tools, and for a grammar that cannot be enforced. Raises
        `GrammarPendingError` while a process checks a grammar: call it again then.
        """
        shown = shown or request
        messages = to_template_messages(shown.messages)
        tool_options, form = read_tool_options(request), answer_form(request)
        shown_tools, shown_form = tool_options, form
        if shown is not request:
            shown_tools, shown_form = read_tool_options(shown), answer_form(shown)
        traits = self.traits(template)
        self._check(request, tool_options, form)
        tool_options, unenforced, grammar = self._enforce(request, tool_options, form, traits)
        is_open = bool(request.continue_final_message)
        offered = shown_tools.offered if shown_tools else ()
        return AnswerSpec(
            messages=_with_rendered_calls(messages, traits),
            added_text=self._added_text(shown_tools, shown_form, traits),
            tools=_template_tools(offered) if traits.renders_tools else [],
            variables=_variables(request),
            grammar=grammar,
            grammar_param=_grammar_param(request, tool_options, form),
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

    def text_form(self, request: SamplingFields) -> AnswerForm | None:
        """The form of a text completion; None for any text. Raises what `specify` raises."""
        form = answer_form(request)
        if form is not None:
            self._checks.check(form.grammar, form.param)
        return form

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

    def _enforce(
        self,
        request: ChatCompletionRequest,
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
        traits: TemplateTraits,
    ) -> tuple[ToolOptions | None, tuple[str, ...], GrammarSpec | None]:
        """Return the tools, the parts of their schemas that are not enforced, and the grammar.

        A grammar that costs too much is loosened. Raises `APIError` if that does not help.
        """
        unenforced: tuple[str, ...] = ()
        if tool_options is not None:
            tool_options, unenforced = self._schemas.enforce(request, tool_options, traits.format)
        param = _grammar_param(request, tool_options, form)
        looser = loosened(request, tool_options, unenforced) if tool_options else iter(())
        while True:
            grammar = self._grammar(request, tool_options, form, traits)
            if grammar is None or param is None:
                return tool_options, unenforced, grammar
            try:
                self._checks.check_cost(grammar, param)
                return tool_options, unenforced, grammar
            except APIError:
                options = next(looser, None)
                if options is None:
                    raise
                tool_options, unenforced = options

    def _grammar(
        self,
        request: ChatCompletionRequest,
        tool_options: ToolOptions | None,
        form: AnswerForm | None,
        traits: TemplateTraits,
    ) -> GrammarSpec | None:
        answer, budget = form.grammar if form else None, request.thinking_budget
        if traits.format.has_messages:
            if tool_options is None and answer is None and budget is None:
                return None
            writer = LarkWriter(self._special_tokens)
            is_open = bool(request.continue_final_message)
            messages = MuseGrammar if traits.format.has_recipients else HarmonyGrammar
            return messages(tool_options, writer, answer, budget, is_open).build()
        if tool_options is None and (answer is None or traits.marks is None):
            return answer
        writer = LarkWriter(self._special_tokens)
        marks = MarkGrammar(writer, traits.marks, traits.markers)
        return ToolGrammar(tool_options or NO_TOOLS, traits.format, writer, answer, marks).build()

    def _check(
        self,
        request: ChatCompletionRequest,
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
    request: ChatCompletionRequest, tool_options: ToolOptions | None, form: AnswerForm | None
) -> str | None:
    """The field that an error in the joined grammar names; its parts have been checked before."""
    if tool_options is None:
        return form.param if form is not None else None
    return "tools" if request.functions is None else "functions"


def _with_rendered_calls(
    messages: list[TemplateMessage], traits: TemplateTraits
) -> list[TemplateMessage]:
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


def _variables(request: ChatCompletionRequest) -> dict[str, Any]:
    """The variables with which templates switch reasoning on and off."""
    effort = request.reasoning_effort
    if effort is None:
        return {}
    is_thinking = effort != "none"
    return {
        "reasoning_effort": effort,
        "reasoning_strength": effort,
        "enable_thinking": is_thinking,
        "thinking": is_thinking,
    }
