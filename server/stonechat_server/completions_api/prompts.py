"""Turns the prompts of a request into token ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.completions_api.fill_in import FillInFormat, fill_in_format
from stonechat_server.completions_api.offsets import as_shown
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import invalid, unsupported
from stonechat_server.request.sampling_params import unknown_token

if TYPE_CHECKING:
    from stonechat_models import Tokenizer

PROBE = "a"
"""A text that shows what a tokenizer puts in front of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One prompt. `path` is its place in the body, such as `prompt[3]`."""

    path: str
    token_ids: list[int]
    text: str
    """The prompt as `echo` shows it, which its tokens spell. It and the bytes are empty without
    `echo`."""
    num_hidden: int = 0
    """How many tokens at the start are not in `text`: those that the tokenizer added."""
    token_bytes: list[bytes]

    def shown_bytes(self) -> list[bytes]:
        """The bytes of each token as `text` shows them."""
        hidden, shown = self.token_bytes[: self.num_hidden], self.token_bytes[self.num_hidden :]
        return [b""] * len(hidden) + as_shown(shown, self.text)


class PromptEncoder:
    """Encodes the prompts of one request. With `as_text`, texts have no special tokens."""

    def __init__(self, request: CompletionRequest, engine: EngineLike, *, as_text: bool) -> None:
        """Raises `APIError` 400 for a suffix that the tokenizer has no tokens for."""
        self._tokenizer = tokenizer = engine.tokenizer
        self._vocab_size = engine.model.vocab_size
        self._as_text = as_text
        self._echoes = bool(request.echo)
        self._suffix = request.suffix or ""
        self._fill_in = known_fill_in(tokenizer, "suffix") if request.suffix else None
        is_added = request.add_special_tokens is not False
        self._beginning = _added_before(tokenizer) if is_added else []

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens other than EOS that end what is filled in."""
        ends = self._fill_in.ends if self._fill_in else ()
        known = [text for text in ends if text in self._tokenizer.added_tokens]
        return tuple(self._tokenizer.encode(text)[0] for text in known)

    def encode(self, prompt: str | list[int], path: str) -> Prompt:
        """Encode one prompt. Raises `APIError` 400 for an empty one, or an unknown token."""
        if isinstance(prompt, str):
            return self._encode_text(prompt, path)
        return self._encode_ids(prompt, path)

    def _encode_text(self, text: str, path: str) -> Prompt:
        tokenizer, beginning = self._tokenizer, self._beginning
        if self._fill_in is not None:
            parts = self._fill_in.parts(text, self._suffix)
            ids = beginning + tokenizer.encode_parts(parts, frozenset(self._fill_in.tokens))
        elif self._as_text:
            ids = beginning + tokenizer.encode_parts([(text, True)])
        else:
            ids = tokenizer.encode(text, add_special_tokens=bool(beginning))
        if not ids:
            ids = beginning = [self._first_token_id(path)]
        return self._prompt(path, ids, text, len(beginning))

    def _encode_ids(self, ids: list[int], path: str) -> Prompt:
        if self._fill_in is not None:
            raise invalid("suffix", "suffix needs a text as the prompt, not token ids.")
        for i, token_id in enumerate(ids):
            if token_id >= self._vocab_size:
                raise unknown_token(f"{path}[{i}]", token_id, self._vocab_size)
        return self._prompt(path, ids, None)

    def _prompt(self, path: str, ids: list[int], text: str | None, num_hidden: int = 0) -> Prompt:
        """`text` is shown if the tokens spell it, else their own text. What the tokenizer adds
        behind it is not shown."""
        token_bytes = [self._tokenizer.token_bytes(i) for i in ids] if self._echoes else []
        if not self._echoes:
            text = ""
        elif text is None or not _spells(token_bytes[num_hidden:], text):
            text = self._tokenizer.decode(ids[num_hidden:], False)
        return Prompt(
            path=path, token_ids=ids, text=text, num_hidden=num_hidden, token_bytes=token_bytes
        )

    def _first_token_id(self, path: str) -> int:
        """The token that begins a text, for an empty prompt."""
        bos = self._tokenizer.special_tokens.get("bos_token", "")
        ids = self._tokenizer.encode(bos) if bos else []
        if len(ids) == 1:
            return ids[0]
        message = f"'{path}' is empty, and this model has no token that begins a text."
        raise invalid(path, message, code="missing_required_parameter")


def _spells(pieces: list[bytes], text: str) -> bool:
    """Whether the bytes of tokens begin with this text."""
    return b"".join(as_shown(pieces, text)).startswith(text.encode())


def known_fill_in(tokenizer: "Tokenizer", param: str) -> FillInFormat:
    """How the model is told of a gap. Raises `APIError` 400, for `param`, if it has no tokens."""
    found = fill_in_format(tokenizer.added_tokens)
    if found is None:
        message = (
            f"This model's tokenizer has no tokens to fill in the middle, which '{param}' needs."
        )
        raise unsupported(param, message)
    return found


def _added_before(tokenizer: "Tokenizer") -> list[int]:
    """What the tokenizer puts in front of a text."""
    plain = tokenizer.encode(PROBE)
    whole = tokenizer.encode(PROBE, add_special_tokens=True)
    starts = (i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[: next(starts, 0)]
