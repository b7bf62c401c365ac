"""Selects the chat template with which a request is rendered."""

from pathlib import Path
from typing import TYPE_CHECKING

from stonechat_server.errors import invalid
from stonechat_server.prompt.chat_template import PLAIN_TEMPLATE, ChatTemplate

if TYPE_CHECKING:
    from stonechat_server.engine_protocol import TokenizerLike
    from stonechat_server.schema.requests import ChatCompletionRequest


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
