"""Renders messages to prompt text with the model's Jinja template, in a sandbox.

The template sees what Hugging Face chat templates expect: `messages`, `tools`, `documents`,
`add_generation_prompt`, the special tokens by name, `raise_exception`, `strftime_now`, the
`tojson` filter, `break`/`continue`, and the `generation` tag (which renders its body).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stonechat_server.errors import APIError, invalid

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import TokenizerLike
    from stonechat_server.schema.requests import ChatCompletionRequest

PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{{ message.role }}{% if message.name %} ({{ message.name }}){% endif %}: {{ message.content }}

{% endfor -%}
{%- if add_generation_prompt %}assistant:{% endif -%}
"""
"""For a model without a template: `role: content`, with a blank line after each message."""

TemplateMessage = dict[str, Any]


class TemplateRefusalError(Exception):
    """The template called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text. It renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (an attribute that jinja2 defines)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateRefusalError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML characters; in a prompt they must stay as they are.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderOptions:
    """What a request specifies about its prompt besides the messages."""

    tools: Sequence[Mapping[str, Any]] = ()
    documents: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)


class ChatTemplate:
    """A compiled template. Raises `APIError` 400 if the template does not compile."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise invalid("chat_template", f"The chat template is not valid: {error}") from error

    def render(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        """Return the prompt. Raises `APIError` 400 if the template cannot render it."""
        if options.continue_final_message:
            return self._render_open(messages, options)
        return self._render(messages, options)

    def _render_open(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        """Render the prompt up to the end of the last message's content; the message stays open."""
        content = messages[-1].get("content")
        if not isinstance(content, str):
            raise invalid("messages", "continue_final_message needs text in the last message.")
        mark = "\ue000stonechat-open-end\ue001"
        text = self._render([*messages[:-1], {**messages[-1], "content": content + mark}], options)
        head, separator, _ = text.rpartition(mark)
        if not separator:
            raise invalid("messages", "The chat template does not render the last message.")
        return head

    def _render(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        try:
            return self._render_once(messages, options)
        except TypeError as error:
            # Most templates expect a call's arguments as an object, some as JSON text.
            if not any(message.get("tool_calls") for message in messages):
                raise _template_error(
                    f"The chat template cannot render these messages: {error}"
                ) from error
        except TemplateRefusalError as error:
            raise _template_error(f"The chat template refuses these messages: {error}") from error
        except Exception as error:  # a template is foreign code and may raise anything
            raise _template_error(
                f"The chat template cannot render these messages: {error}"
            ) from error
        return self._render([_with_text_arguments(message) for message in messages], options)

    def _render_once(self, messages: Sequence[TemplateMessage], options: RenderOptions) -> str:
        variables: dict[str, Any] = {
            **self._special_tokens,
            **options.variables,
            "messages": messages,
            "tools": list(options.tools) or None,
            "documents": list(options.documents) or None,
            "add_generation_prompt": options.add_generation_prompt,
        }
        return self._template.render(variables)


class Templates:
    """The server's chat templates, and a request's own template if that is allowed.

    The default is `override`, else the model's template, else the plain one. `override` is a file's
    path or the text of a template.
    """

    def __init__(
        self, tokenizer: "TokenizerLike", override: str | None = None, allow_request: bool = False
    ) -> None:
        self._special_tokens = dict(tokenizer.special_tokens)
        self._allow_request = allow_request
        source = _read(override) if override else tokenizer.chat_template
        self.is_plain = source is None
        self.default = self._compile(source or PLAIN_TEMPLATE)
        model_templates = {} if override else tokenizer.chat_templates
        self._named = {name: self._compile(text) for name, text in model_templates.items()}

    def select(self, request: "ChatCompletionRequest") -> ChatTemplate:
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

    def _compile(self, source: str) -> ChatTemplate:
        return ChatTemplate(source, self._special_tokens)


def _read(override: str) -> str:
    if "{{" in override or "{%" in override:
        return override
    return Path(override).read_text(encoding="utf-8")


def _with_text_arguments(message: TemplateMessage) -> TemplateMessage:
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_with_text(call) for call in calls]}


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": _to_json(function["arguments"])}}


def _template_error(message: str) -> APIError:
    return invalid("messages", message, code="chat_template_error")
