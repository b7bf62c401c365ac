"""Turns the inputs of a request into token ids."""

from dataclasses import dataclass
from functools import cached_property

from stonechat_models import EmbeddingInfo, ModelInfo
from stonechat_server.embeddings_api.request import EmbeddingRequest
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.errors import APIError, invalid
from stonechat_server.prompt.special_tokens import tokens_around
from stonechat_server.request.sampling_params import unknown_token

PROMPTS_OF_TYPES = {
    "query": ("query", "search_query"),
    "document": ("document", "passage", "search_document", "corpus"),
}
"""The names under which models keep the prompts of both types, the usual ones first."""
TYPE_NAMES = {"search_query": "query", "passage": "document", "search_document": "document"}


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """The tokens of an input. Of the first `num_unpooled`, none is pooled."""

    token_ids: list[int]
    num_unpooled: int = 0


class InputEncoder:
    """Encodes the inputs of one request."""

    def __init__(
        self,
        request: EmbeddingRequest,
        engine: EngineLike,
        info: EmbeddingInfo,
        *,
        as_text: bool,
    ) -> None:
        """With `as_text`, special tokens in texts are ordinary text.

        Raises `APIError` 400 for a prompt that the model has not.
        """
        self._tokenizer = engine.tokenizer
        self._vocab_size = engine.model.vocab_size
        self._max_length = engine.model.max_model_len
        self._cut_length = cut = request.truncate_prompt_tokens
        if cut is not None:
            self._cut_length = self._max_length if cut == -1 else min(cut, self._max_length)
        self._adds_special_tokens = request.add_special_tokens is not False
        self._as_text = as_text
        self._lower_case = info.lower_case
        self._prompt = _prompt(request, info)
        self._num_unpooled = 0
        if self._prompt and info.skips_prompt:
            self._num_unpooled = self._num_prompt_tokens()

    def encode_all(self, request: EmbeddingRequest) -> list[EncodedInput]:
        """Encode all inputs. Raises `APIError` 400 for one that is too long or has no tokens."""
        return [self._encode(path, item) for path, item in request.inputs]

    def _encode(self, path: str, item: str | list[int]) -> EncodedInput:
        if isinstance(item, str):
            ids = self._ids_of(self._prompt + item)
        else:
            self._check_ids(path, item)
            ids = item
        if not ids:
            raise invalid(path, f"'{path}' has no tokens.")
        if self._cut_length is not None and len(ids) > self._cut_length:
            ids = self._cut(ids, item)
        if len(ids) > self._max_length:
            raise APIError(
                400,
                f"'{path}' has {len(ids)} tokens, and this model takes at most "
                f"{self._max_length}. Shorten it, or set truncate_prompt_tokens.",
                param=path,
                code="context_length_exceeded",
            )
        return EncodedInput(ids, self._num_unpooled)

    def _ids_of(self, text: str) -> list[int]:
        tokenizer, adds = self._tokenizer, self._adds_special_tokens
        text = text.lower() if self._lower_case else text
        if not self._as_text:
            return tokenizer.encode(text, add_special_tokens=adds)
        before, behind = self._tokens_around if adds else ([], [])
        return before + tokenizer.encode_parts([(text, True)]) + behind

    def _check_ids(self, path: str, ids: list[int]) -> None:
        if self._prompt:
            raise invalid(path, "Token ids cannot have a prompt put before them; send texts.")
        for i, token_id in enumerate(ids):
            if token_id >= self._vocab_size:
                raise unknown_token(f"{path}[{i}]", token_id, self._vocab_size)

    def _cut(self, ids: list[int], item: str | list[int]) -> list[int]:
        """Cut ids at their end. The special tokens behind a text stay."""
        assert self._cut_length is not None
        is_framed = isinstance(item, str) and self._adds_special_tokens
        behind = self._tokens_around[1] if is_framed else []
        if len(behind) >= self._cut_length:
            return ids[: self._cut_length]
        return ids[: self._cut_length - len(behind)] + behind

    @cached_property
    def _tokens_around(self) -> tuple[list[int], list[int]]:
        return tokens_around(self._tokenizer)

    def _num_prompt_tokens(self) -> int:
        """The tokens of the prompt, with what the tokenizer puts before a text."""
        behind = self._tokens_around[1] if self._adds_special_tokens else []
        return len(self._ids_of(self._prompt)) - len(behind)


def params_without_effect(request: EmbeddingRequest, model: ModelInfo) -> list[str]:
    """The fields that a request sets and that change nothing with this model and these inputs."""
    prompts = {} if model.embedding is None else model.embedding.prompts
    has_prompt = any(name in prompts for name in _names_of_type(request))
    is_text = isinstance(request.inputs[0][1], str)
    without_effect = {
        "add_special_tokens": not is_text,
        "cache_salt": not model.generates,
        "input_type": not has_prompt,
    }
    return [
        name
        for name, is_ignored in without_effect.items()
        if is_ignored and getattr(request, name) is not None
    ]


def _names_of_type(request: EmbeddingRequest) -> tuple[str, ...]:
    """The names that the prompt of the request's `input_type` may have."""
    if request.input_type is None:
        return ()
    return PROMPTS_OF_TYPES[TYPE_NAMES.get(request.input_type, request.input_type)]


def _prompt(request: EmbeddingRequest, info: EmbeddingInfo) -> str:
    """The text to put before each input. Empty for token ids if only the default names one."""
    name, prompts = request.prompt_name, info.prompts
    if name is not None:
        if request.input_type is not None:
            raise invalid("input_type", "input_type and prompt_name cannot both be given.")
        if name not in prompts:
            known = f"It has {', '.join(map(repr, prompts))}." if prompts else "It has none."
            raise invalid("prompt_name", f"This model has no prompt {name[:100]!r}. {known}")
        return prompts[name]
    if request.input_type is not None:
        return next((prompts[name] for name in _names_of_type(request) if name in prompts), "")
    is_text = isinstance(request.inputs[0][1], str)
    return prompts.get(info.default_prompt, "") if is_text else ""
