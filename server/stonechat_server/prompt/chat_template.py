"""Renders messages to prompt text with the model's Jinja template, in a sandbox.

The template sees what Hugging Face chat templates expect: `messages`, `tools`, `documents`,
`add_generation_prompt` and the special tokens by name. A prompt that transformers renders is the
same here. Where the template refuses or cannot render the messages, they are rewritten once.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stonechat_server.errors import invalid
from stonechat_server.prompt import call_repairs
from stonechat_server.prompt import message_repairs as repairs
from stonechat_server.prompt.environment import (
    GenerationTag,
    SafeDict,
    SafeNamespace,
    TemplateRefusalError,
    raise_exception,
    strftime_now,
    to_json,
)
from stonechat_server.prompt.media import PromptMedia, has_audio, with_moved_media
from stonechat_server.prompt.message_repairs import TemplateMessage
from stonechat_server.prompt.reasoning_names import NAMES, with_reasoning_names
from stonechat_server.prompt.special_tokens import SpecialTokenGuard
from stonechat_server.prompt.template_trials import TemplateTrials, shows_only_parts
from stonechat_server.prompt.tool_repairs import with_all_keys, with_plain_types
from stonechat_server.schema.requests import ChatCompletionRequest

if TYPE_CHECKING:
    from stonechat_models import Tokenizer

KNOWN_TEMPLATES = 4
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{{ message.role }}{% if message.name %} ({{ message.name }}){% endif %}: {{ message.content }}

{% endfor -%}
{%- if add_generation_prompt %}assistant:{% endif -%}
"""
"""For a model without a template: `role: content`, with a blank line after each message."""
NO_TEMPLATE = (
    "the model has no chat template, so each message is sent as a paragraph `role: content`, which "
    "base models continue and chat models do not know (--chat-template sets one)"
)
"""Said of a model for which `Templates.is_plain` is true."""
TEMPLATE_ERROR = "chat_template_error"
"""The code of the error for messages that a template refuses or cannot render."""
OPEN_END = "\ue000stonechat-open-end\ue001 "
"""Marks the end of the message to continue. The space shows whether the template trims it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """What a request specifies about its prompt besides the messages."""

    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    added_text: str = ""
    """The server's own instructions: part of the system message, if the template takes one."""
    media: PromptMedia | None = None
    """Set if the messages have images or audio."""


class SafeEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which a template may append to lists and pop from them, as Kimi's does."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        is_list_method = attr in ("append", "pop") and type(obj) is list
        return is_list_method or super().is_safe_attribute(obj, attr, value)


class ChatTemplate:
    """A compiled template. Raises `APIError` 400 if the template does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._shows_functions = "+ functions" in source  # FireFunction's own variable
        try:
            self._template = new_environment().from_string(source)
        except Exception as error:  # also RecursionError, for one that is nested too deeply
            raise invalid("chat_template", f"The chat template is not valid: {error}") from error
        self._trials = TemplateTrials(
            lambda messages, tools: self._render_once(messages, RenderOptions(tools=tools))
        )

    def render(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        """Return the prompt. Raises `APIError` 400 if the template cannot render it."""
        if options.continue_final_message:
            return self._render_open(messages, options)
        shown = self._shown(messages, options.added_text)
        try:
            prompt = self._render_once(shown, options)
        except Exception as error:  # a template is foreign code and may raise anything
            if options.media is not None:
                if (moved := with_moved_media(messages)) != messages:
                    return self.render(moved, options)
                if has_audio(messages) and not isinstance(error, TemplateRefusalError):
                    return self.render(options.media.written(messages), options)
            return self._render_repaired(shown, options, error)
        if options.added_text.strip() not in prompt:
            messages = repairs.before_first_user(messages, options.added_text)
            return self.render(messages, replace(options, added_text=""))
        return prompt

    def render_exactly(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        """Return the prompt of messages that are not rewritten, of any roles.

        Raises `APIError` 400 if the template cannot render them.
        """
        try:
            return self._render_once(messages, options)
        except Exception as error:  # a template is foreign code and may raise anything
            message = f"The chat template cannot render these messages: {error}"
            raise invalid("messages", message, code=TEMPLATE_ERROR) from error

    def _render_open(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        """Render the prompt up to the end of the last message's content; the message stays open."""
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise invalid("messages", "continue_final_message needs text in the last message.")
        marked = [*messages[:-1], {**messages[-1], "content": content + OPEN_END}]
        text = self.render(marked, replace(options, continue_final_message=False))
        head, separator, tail = text.rpartition(OPEN_END.rstrip())
        if not separator:
            raise invalid("messages", "The chat template does not render the last message.")
        return head if tail.startswith(" ") else head.rstrip()

    def _shown(self, messages: Sequence[TemplateMessage], added_text: str) -> list[TemplateMessage]:
        """Return the messages in the form that the template takes.

        Keys that are null or without calls are left out, and reasoning has all its names.
        """
        shown: list[TemplateMessage] = []
        has_system = has_later_system = has_calls = False
        for message in messages:
            if None in message.values() or message.get("tool_calls") == []:
                message = {k: v for k, v in message.items() if v is not None}
                if not message.get("tool_calls"):
                    message.pop("tool_calls", None)
            if not message.keys().isdisjoint(NAMES):
                message = with_reasoning_names(message)
            if message["role"] == "system":
                has_system, has_later_system = True, has_later_system or bool(shown)
            has_calls = has_calls or "tool_calls" in message or message["role"] == "tool"
            shown.append(message)
        if added_text:
            shown = self._with_added_text(shown, added_text)
        if (has_system or added_text) and not self._trials.takes_system:
            shown = repairs.without_system(shown)
        elif has_later_system and not self._trials.takes_later_system:
            shown = shown[:1] + repairs.without_system(shown[1:])
        elif has_system and len(shown) == 1 and not self._trials.takes_lone_system:
            shown = repairs.without_system(shown)
        return self._with_shown_calls(shown) if has_calls else shown

    def _with_shown_calls(self, messages: list[TemplateMessage]) -> list[TemplateMessage]:
        """Rewrite calls and results so that the template shows all of them, and the text beside."""
        trials = self._trials
        if trials.arguments == "text":
            messages = call_repairs.with_text_arguments(messages)
        elif call_repairs.has_broken_arguments(messages) and not trials.shows_text_arguments:
            messages = call_repairs.with_object_arguments(messages)
        if trials.text_beside_calls == "apart":
            messages = call_repairs.with_text_apart(messages)
        elif trials.text_beside_earlier_calls == "apart":
            messages = call_repairs.with_text_apart(messages, end=_last_turn(messages))
        if not trials.takes_reasoning_beside_text:
            messages = call_repairs.with_joined_reasoning(messages)
        if not trials.shows_several_calls:
            messages = call_repairs.with_single_calls(messages)
        if trials.call_content is None:
            messages = call_repairs.with_null_content(messages)
        return messages if trials.takes_lone_results else call_repairs.with_told_results(messages)

    def _with_added_text(self, messages: list[TemplateMessage], text: str) -> list[TemplateMessage]:
        """Append `text` to the system message at the beginning, or add such a message.

        Where that would displace the template's own system text, `text` goes before the first user
        message.
        """
        if messages and messages[0]["role"] == "system":
            content = messages[0].get("content")
            joined = f"{content}\n\n{text}" if content else text
            return [{**messages[0], "content": joined}, *messages[1:]]
        if self._trials.takes_system and not self._trials.keeps_default_system:
            return repairs.before_first_user(messages, text)
        return [{"role": "system", "content": text}, *messages]

    def _render_repaired(
        self, messages: list[TemplateMessage], options: RenderOptions, error: Exception
    ) -> str:
        """Render once more, with what the template may miss, and then with simpler tools.

        Raises `APIError` 400 if it fails.
        """
        repaired = [{**message, "content": message.get("content", "")} for message in messages]
        if call_repairs.has_broken_arguments(repaired):
            if self._trials.arguments != "text":
                repaired = call_repairs.with_object_arguments(repaired)
        elif self._trials.arguments == "unknown":
            repaired = call_repairs.with_text_arguments(repaired)
        if isinstance(error, TemplateRefusalError):
            joins_calls = self._trials.text_beside_calls != "apart"
            repaired = repairs.after_refusal(repaired, joins_calls=joins_calls)
        complete = replace(options, tools=[with_all_keys(tool) for tool in options.tools])
        try:
            return self._render_once(repaired, complete, absent=[])
        except Exception as second_error:
            is_refusal = isinstance(second_error, TemplateRefusalError)
            if options.tools and not is_refusal:
                typed = replace(options, tools=[with_plain_types(tool) for tool in options.tools])
                with suppress(Exception):
                    return self._render_once(repaired, typed, absent=[])
            verb = "refuses" if is_refusal else "cannot render"
            raise invalid(
                "messages",
                f"The chat template {verb} these messages: {second_error}",
                code=TEMPLATE_ERROR,
            ) from second_error

    def _render_once(
        self,
        messages: Sequence[TemplateMessage],
        options: RenderOptions,
        absent: list[Any] | None = None,
    ) -> str:
        if self._wants_parts:
            messages = repairs.with_parts(messages)
        variables: dict[str, Any] = {
            **self._special_tokens,
            **options.variables,
            "messages": list(messages),
            "tools": list(options.tools) or absent,
            "documents": list(options.documents) or absent,
            "add_generation_prompt": options.add_generation_prompt,
        }
        if self._shows_functions:
            functions = [tool["function"] for tool in options.tools if "function" in tool]
            variables["functions"] = to_json(functions, indent=4)
            variables["datetime"] = datetime.now().strftime("%Y-%m-%d %H:%M")
        prompt = self._template.render(variables)
        return prompt if options.media is None else options.media.fill(prompt, messages)

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether content must be a list of parts: text is then not in the prompt at all."""
        has_media = "image" in self.source or "audio" in self.source
        return has_media and shows_only_parts(
            lambda variables: self._template.render({**self._special_tokens, **variables})
        )


def new_environment() -> jinja2.Environment:
    """Return a sandbox for one template."""
    environment = SafeEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception,
        strftime_now=strftime_now,
        dict=SafeDict(),
        namespace=SafeNamespace,
    )
    return environment


class Templates:
    """The server's chat templates, and a request's own template if that is allowed.

    The default is `override`, else the model's template, else `known`, else the plain one.
    `override` is a file's path or the text of a template. With `special_tokens_as_text`, prompts
    need a `guard`.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        override: str | None = None,
        allow_request: bool = False,
        *,
        special_tokens_as_text: bool = False,
        known: str | None = None,
    ) -> None:
        self.special_tokens_as_text = special_tokens_as_text
        self._special_tokens = dict(tokenizer.special_tokens)
        self._allow_request = allow_request
        new_guard = partial(SpecialTokenGuard, tokenizer, only=not special_tokens_as_text)
        self._guards = lru_cache(KNOWN_TEMPLATES)(new_guard)
        source = _read(override) if override else tokenizer.chat_template or known
        self.is_plain = not source
        self.default = self._compile(source or PLAIN_TEMPLATE)
        if special_tokens_as_text:
            self.guard(self.default)
        model_templates = {} if override else tokenizer.chat_templates
        self._named = {name: self._compile(text) for name, text in model_templates.items()}

    def select(self, request: ChatCompletionRequest) -> ChatTemplate:
        """Return the template for a request.

        Raises `APIError` 400 if the request has its own template and that is forbidden or invalid.
        """
        if request.chat_template is not None:
            if not self._allow_request:
                raise invalid(
                    "chat_template",
                    "This server does not accept chat templates from requests.",
                    code="unsupported_parameter",
                )
            return self._compile(request.chat_template)
        if request.tools and "tool_use" in self._named:
            return self._named["tool_use"]
        return self.default

    def guard(
        self, template: ChatTemplate, placeholders: AbstractSet[str] = frozenset()
    ) -> SpecialTokenGuard:
        """Return what keeps special tokens in texts of clients and documents from being tokens.

        Without `special_tokens_as_text` it does so in documents, and elsewhere only for
        `placeholders`, the texts for media.
        """
        return self._guards(template.source, frozenset(placeholders))

    def _compile(self, source: str) -> ChatTemplate:
        return ChatTemplate(source, self._special_tokens)


def _read(override: str) -> str:
    if "{{" in override or "{%" in override:
        return override
    return Path(override).read_text(encoding="utf-8")


def _last_turn(messages: Sequence[TemplateMessage]) -> int:
    """The position of the latest message of the user, or answer without calls; 0 without one."""
    return max(
        (i for i, m in enumerate(messages) if m["role"] == "user" or repairs.is_answer(m)),
        default=0,
    )
