"""Keeps special tokens in the texts of clients and of documents from acting as tokens.

A secret mark is put around each of them before the template renders. The rendered prompt is then
split at the marks, and what they enclose is encoded as ordinary text.
"""

import re
import secrets
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

from stonechat_models import any_of
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.messages import DocumentText, Message, SourcePart, TextPart
from stonechat_server.schema.requests import ChatCompletionRequest

if TYPE_CHECKING:
    from stonechat_models import Tokenizer

SHOWN_FIELDS = {
    *("messages", "tools", "functions", "response_format", "structured_outputs"),
    *("documents", "chat_template_kwargs"),
}
"""The request fields with texts that may get into the prompt."""
PROBE = "a"
"""A text that shows what a tokenizer puts around any text."""


class SpecialTokenGuard:
    """Guards prompts that one chat template renders.

    Its control tokens are the special tokens, and those added tokens that stand in the template.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer",
        template: str,
        placeholders: AbstractSet[str] = frozenset(),
        *,
        only: bool = False,
    ) -> None:
        """`placeholders` are guarded too; with `only`, nothing else is, but in documents."""
        self._tokenizer = tokenizer
        special = {tokenizer.token_text(token_id) for token_id in tokenizer.special_ids}
        others = {text for text in tokenizer.added_tokens if text in template}
        marked = {text for text in special | others if text.strip() and not text.isalnum()}
        self._has_media = bool(placeholders)
        self._control_tokens = frozenset(marked | placeholders)
        any_token = any_of(self._control_tokens)
        self._mark = secrets.token_hex(8)
        self._document_token = re.compile(any_token)
        self._token = re.compile(any_of(placeholders)) if only else self._document_token
        self._marked = re.compile(f"{self._mark}({any_token}){self._mark}|{self._mark}")
        self.encode("")  # the first time takes longest

    def marked(self, request: ChatCompletionRequest) -> ChatCompletionRequest:
        """Return the request with marks; the same object if there is nothing to mark.

        Where a control token is spread over texts beside media, they become one text.
        """
        if self._has_media:
            messages = [self._with_whole_tokens(message) for message in request.messages]
            if any(new is not old for new, old in zip(messages, request.messages, strict=True)):
                request = request.model_copy(update={"messages": messages})
        marked = self._marked_fields(request, SHOWN_FIELDS)
        return request.model_copy(update=marked) if marked else request

    def marked_text(self, text: str) -> str:
        """Return a text with marks."""
        return self._put_marks(self._token, text)

    def _put_marks(self, token: re.Pattern[str], text: str) -> str:
        return token.sub(f"{self._mark}\\g<0>{self._mark}", text)

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt with marks."""
        return self._tokenizer.encode_parts(self._split(prompt), self._control_tokens)

    def pieces(self, prompt: str) -> list[tuple[str, bool]]:
        """Split a prompt into what has no marks, and with the flag, tokens with their marks."""
        around = self._mark
        return [
            (f"{around}{piece}{around}" if is_marked else piece, is_marked)
            for piece, is_marked in self._split(prompt)
        ]

    def _split(self, prompt: str) -> list[tuple[str, bool]]:
        pieces = self._marked.split(prompt)
        return [(piece or "", number % 2 == 1) for number, piece in enumerate(pieces)]

    def unmarked(self, prompt: str) -> str:
        """Return a prompt without its marks, for people to read."""
        return prompt.replace(self._mark, "")

    def _with_whole_tokens(self, message: Message) -> Message:
        """Put the texts beside media into one part if a token is spread over several.

        Templates may write them behind each other, with or without the spaces at their ends.
        """
        parts = message.content
        if not isinstance(parts, list) or not any(isinstance(p, SourcePart) for p in parts):
            return message
        texts = [text for part in parts if (text := _text(part)) is not None]
        apart = [token for text in texts for token in self._token.findall(text)]
        stripped = "".join([text.strip() for text in texts])
        if all(self._token.findall(joined) == apart for joined in ("".join(texts), stripped)):
            return message
        media = [part for part in parts if _text(part) is None]
        kind = DocumentText if any(isinstance(p, DocumentText) for p in parts) else TextPart
        whole = kind(type="text", text="".join(texts))
        return message.model_copy(update={"content": [whole, *media]})

    def _marked_fields(self, model: WireModel, names: AbstractSet[str]) -> dict[str, Any]:
        """The fields among `names` that get marks, with them."""
        given = model.model_fields_set & names & type(model).model_fields.keys()
        values = {name: getattr(model, name) for name in given}
        marked = {name: self._with_marks(value) for name, value in values.items()}
        return {name: value for name, value in marked.items() if value != values[name]}

    def _with_marks(self, value: Any) -> Any:
        if isinstance(value, DocumentText):
            text = self._put_marks(self._document_token, value.text)
            return value if text == value.text else value.model_copy(update={"text": text})
        if isinstance(value, WireModel):
            copied = value.model_copy(
                update=self._marked_fields(value, type(value).model_fields.keys())
            )
            if copied.model_extra:
                extra = self._with_marks(copied.model_extra)
                copied.model_extra.clear()
                copied.model_extra.update(extra)
            return copied
        if isinstance(value, str):
            return self.marked_text(value)
        if isinstance(value, list):
            return [self._with_marks(item) for item in value]
        if isinstance(value, dict):
            return {self._with_marks(key): self._with_marks(item) for key, item in value.items()}
        return value


def _text(part: Any) -> str | None:
    """The text of a part beside media, which may be plain JSON in tools; None for these."""
    if isinstance(part, SourcePart):
        return None
    return part.text if isinstance(part, TextPart) else str(part.get("text") or "")


def tokens_around(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text, and behind it."""
    plain = tokenizer.encode(PROBE)
    whole = tokenizer.encode(PROBE, add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []
