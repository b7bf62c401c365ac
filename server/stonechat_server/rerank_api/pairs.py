"""Turns pairs of texts into token ids."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stonechat_server.errors import APIError, invalid
from stonechat_server.rerank_api.request import PairFields

if TYPE_CHECKING:
    from stonechat_models import RankingInfo
    from stonechat_server.engine_protocol import EngineLike


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """The tokens of a pair. The first `num_first` belong to its first text."""

    token_ids: list[int]
    num_first: int


class PairEncoder:
    """Encodes the pairs of one request."""

    def __init__(
        self, request: PairFields, engine: "EngineLike", info: "RankingInfo", *, as_text: bool
    ) -> None:
        """With `as_text`, special tokens in texts are ordinary text.

        Raises `APIError` 400 for a limit that leaves no room for texts.
        """
        self._tokenizer = engine.tokenizer
        self._frame = engine.tokenizer.pair_frame
        self._as_text = as_text
        self._info = info
        self._max_length = engine.model.max_model_len
        self._max_first = request.max_tokens_per_query
        self._max_second = request.max_tokens_per_doc
        cut = request.truncate_prompt_tokens
        self._cuts = bool(request.truncation or request.truncate or cut is not None)
        self._limit = self._max_length if cut in (None, -1) else min(cut, self._max_length)
        if self._limit <= self._frame.num_tokens:
            message = f"A pair has {self._frame.num_tokens} special tokens; leave room for texts."
            raise invalid("truncate_prompt_tokens", message)

    def first(self, text: str) -> list[int]:
        """Encode the first text of pairs: the question, behind the model's prompt for it."""
        return self._encode(self._info.prompt + text)[: self._max_first]

    def second(self, text: str) -> list[int]:
        """Encode the second text of a pair: a document."""
        return self._encode(text)[: self._max_second]

    def join(self, path: str, first: list[int], second: list[int]) -> EncodedPair:
        """Return a pair. `path` names it in the request.

        Raises `APIError` 400 if it is too long, or has no tokens.
        """
        room = self._limit - self._frame.num_tokens
        if self._cuts and len(first) + len(second) > room:
            first, second = _cut(first, second, room)
        ids, num_first = self._frame.join(first, second)
        if not ids:
            raise invalid(path, f"'{path}' has no tokens.")
        if len(ids) > self._max_length:
            raise APIError(
                400,
                f"'{path}' has {len(ids)} tokens together with its question, and this model takes "
                f"at most {self._max_length}. Shorten it, or set truncation.",
                param=path,
                code="context_length_exceeded",
            )
        return EncodedPair(ids, num_first)

    def _encode(self, text: str) -> list[int]:
        text = text.lower() if self._info.lower_case else text
        if self._as_text:
            return self._tokenizer.encode_parts([(text, True)])
        return self._tokenizer.encode(text)


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
