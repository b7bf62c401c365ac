"""Turns pairs of texts into token ids: by the frame of a tokenizer, or by a chat template."""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

from stonechat_models import RankingInfo
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.prompt.chat_template import TEMPLATE_ERROR, ChatTemplate, RenderOptions
from stonechat_server.rerank_api.request import PairFields

PLACEHOLDER = re.compile(r"\{query\}|\{document\}")
MAX_TOKENS = 2**22
"""Tokens of all pairs of a request: each repeats its question, so that a short body makes many."""
PROBES = (("a", "b"), ("c", "b"), ("a", "d"))
"""Pairs whose prompts differ if the template shows both texts."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """The tokens of a pair. The first `num_first` belong to its first text."""

    token_ids: list[int]
    num_first: int = 0


class PairEncoder(ABC):
    """Encodes the pairs of one request."""

    def __init__(self, request: PairFields, model: ServedModel, info: RankingInfo) -> None:
        """Raises `APIError` 400 for what the model does not take."""
        self._info = info
        self._tokenizer = model.engine.tokenizer
        self._max_first = request.max_tokens_per_query
        self._max_second = request.max_tokens_per_doc
        cut = request.truncate_prompt_tokens
        self._cuts = bool(request.truncation or request.truncate or cut is not None)
        self._limit = model.engine.model.max_model_len
        self._num_tokens = 0
        if cut is not None and cut != -1:
            self._limit = min(cut, self._limit)

    @abstractmethod
    def encode(self, path: str, first: str, second: str) -> EncodedPair:
        """Encode a question and a document. `path` names the document in the request.

        Raises `APIError` 400 if they are too long, also with those before them, or have no tokens.
        """

    def _cased(self, text: str) -> str:
        return text.lower() if self._info.lower_case else text

    def _checked(self, path: str, pair: EncodedPair) -> EncodedPair:
        num_tokens = len(pair.token_ids)
        if not num_tokens:
            raise invalid(path, f"'{path}' has no tokens.")
        if num_tokens > self._limit:
            raise APIError(
                400,
                f"'{path}' has {num_tokens} tokens together with its question, and this model "
                f"takes at most {self._limit}. Shorten it, or set truncation.",
                param=path,
                code="context_length_exceeded",
            )
        self._num_tokens += num_tokens
        if self._num_tokens > MAX_TOKENS:
            message = f"The pairs have more than {MAX_TOKENS} tokens together. Send fewer at once."
            raise invalid(path, message)
        return pair


class FramedPairs(PairEncoder):
    """Pairs as the tokenizer of a classifier writes them."""

    def __init__(self, request: PairFields, model: ServedModel, info: RankingInfo) -> None:
        super().__init__(request, model, info)
        _refuse_instruction(request)
        self._frame = self._tokenizer.pair_frame
        self._as_text = model.settings.special_tokens_as_text
        self._firsts: dict[str, list[int]] = {}
        if self._limit <= self._frame.num_tokens:
            message = f"A pair has {self._frame.num_tokens} special tokens; leave room for texts."
            raise invalid("truncate_prompt_tokens", message)

    def encode(self, path: str, first: str, second: str) -> EncodedPair:
        if first not in self._firsts:
            self._firsts[first] = self._ids(self._info.prompt + first)[: self._max_first]
        ids, second_ids = self._firsts[first], self._ids(second)[: self._max_second]
        room = self._limit - self._frame.num_tokens
        if self._cuts and len(ids) + len(second_ids) > room:
            ids, second_ids = _cut(ids, second_ids, room)
        return self._checked(path, EncodedPair(*self._frame.join(ids, second_ids)))

    def _ids(self, text: str) -> list[int]:
        text = self._cased(text)
        if self._as_text:
            return self._tokenizer.encode_parts([(text, True)])
        return self._tokenizer.encode(text)


class TemplatePairs(PairEncoder):
    """Pairs as a template of a model that generates writes them."""

    def __init__(self, request: PairFields, model: ServedModel, info: RankingInfo) -> None:
        """Raises `APIError` 400 also for a template that leaves out one of the texts."""
        super().__init__(request, model, info)
        templates = model.templates
        self._template = templates.default
        if info.template == "rerank":
            self._template = ChatTemplate(self._tokenizer.chat_templates["rerank"], {})
            _refuse_instruction(request)
        self._guard = None
        self._system = request.instruction or request.instruct or ""
        if templates.special_tokens_as_text:
            self._guard = templates.guard(self._template)
            self._system = self._guard.marked_text(self._system)
        self._system = self._system or info.prompt
        self._firsts: dict[str, str] = {}
        """The questions as prompts show them."""
        options = dict(info.template_options)
        self._options = RenderOptions(
            add_generation_prompt=bool(options.pop("add_generation_prompt", False)),
            variables=options,
        )
        if len({self._render(*probe) for probe in PROBES}) < len(PROBES):
            message = "The chat template leaves out the messages of a query and a document."
            raise invalid("model", message, TEMPLATE_ERROR)

    def encode(self, path: str, first: str, second: str) -> EncodedPair:
        if first not in self._firsts:  # a question has many documents
            self._firsts[first] = self._shown(first, self._max_first)
        first, second = self._firsts[first], self._shown(second, self._max_second)
        ids = self._ids(first, second)
        rest = self._tokenizer.encode(second) if self._cuts and len(ids) > self._limit else []
        while rest and len(ids) > self._limit:
            rest = rest[: max(0, len(rest) - len(ids) + self._limit)]
            ids = self._ids(first, self._decode(rest))
        return self._checked(path, EncodedPair(ids))

    def _shown(self, text: str, max_tokens: int | None) -> str:
        """The text in the case that the model reads, cut."""
        text = self._cased(text)
        if max_tokens is None:
            return text
        return self._decode(self._tokenizer.encode(text)[:max_tokens])

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _ids(self, first: str, second: str) -> list[int]:
        if self._guard is None:
            return self._tokenizer.encode(self._render(first, second))
        texts = [self._guard.marked_text(text) for text in (first, second)]
        return self._guard.encode(self._render(*texts))

    def _render(self, first: str, second: str) -> str:
        if self._info.template == "rerank":
            texts = {"{query}": first, "{document}": second}
            return PLACEHOLDER.sub(lambda match: texts[match[0]], self._template.source)
        messages = [{"role": "query", "content": first}, {"role": "document", "content": second}]
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        return self._template.render_exactly(messages, self._options)


def _refuse_instruction(request: PairFields) -> None:
    if request.instruction or request.instruct:
        name = "instruction" if request.instruction else "instruct"
        raise unsupported(name, "This model takes no instruction.")


def _cut(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut two texts to `room` tokens together: the longer one, and at last both to one half.

    That is `longest_first` of the library tokenizers.
    """
    short, long = sorted((len(first), len(second)))
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    if len(first) > len(second):
        return first[:long], second[:short]
    return first[:short], second[:long]
