"""Constrains reasoning: a grammar starts after it, and a token budget can end it."""

from copy import copy
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stonechat_models.errors import GrammarError
from stonechat_models.grammar.vocabulary import VocabularyLike
from stonechat_models.sampling.state import TokenConstraint
from stonechat_models.types import ReasoningSpec

GAP_TEXTS = (b"\n", b"\n\n")
"""One token of these texts may come between the end of reasoning and the grammar's text."""


class StartedConstraint(TokenConstraint, Protocol):
    """A `TokenConstraint` that can also say whether it allows one token."""

    def allows(self, token_id: int) -> bool: ...

    def fork(self) -> "StartedConstraint": ...


@dataclass(frozen=True, slots=True)
class MarkerTokens:
    """A `ReasoningSpec` as tokens of one vocabulary. All choices share it.

    The masks (int32 words, as in the rows of `TokenConstraint`) allow the tokens that may be part
    of reasoning. Both exclude tokens with text after a whole end marker. `thought_mask` also
    excludes special tokens and end tokens; `free_mask` is for answers that may be empty.
    """

    spec: ReasoningSpec
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    end: bytes
    token_texts: tuple[bytes, ...]
    thought_mask: npt.NDArray[np.int32]
    free_mask: npt.NDArray[np.int32]
    answer_end_ids: tuple[int, ...]
    overlong_ids: tuple[int, ...]
    """Tokens with the end marker's last byte before their own: they may go past the marker."""
    gap_ids: tuple[int, ...]

    @classmethod
    def build(
        cls, spec: ReasoningSpec, tokenizer: VocabularyLike, vocab_size: int
    ) -> "MarkerTokens":
        """Find the marker tokens and build the mask.

        Takes tens of milliseconds: call it off the event loop. Raises `ValueError` if a marker is
        empty, and `GrammarError` if it has tokens for which the model has no embedding.
        """
        num_tokens = min(tokenizer.vocab_size, vocab_size)
        texts = tuple(tokenizer.token_bytes(i) for i in range(num_tokens))
        texts += (b"",) * (vocab_size - num_tokens)
        start, end = spec.start.encode(), spec.end.encode()
        start_ids = tuple(tokenizer.encode(spec.start, add_special_tokens=False))
        end_ids = tuple(tokenizer.encode(spec.end, add_special_tokens=False))
        if not start or not end or not start_ids or not end_ids:
            raise ValueError("the markers of reasoning must not be empty")
        if max(start_ids + end_ids) >= vocab_size:
            raise GrammarError("the model has no embedding for its markers of reasoning")
        barred_ids = {*tokenizer.special_ids, *tokenizer.eos_token_ids} - set(end_ids)
        thoughts = [
            i for i, text in enumerate(texts) if text and (end not in text or text.endswith(end))
        ]
        end_tokens = [i for i in tokenizer.eos_token_ids if i < vocab_size]
        return cls(
            spec=spec,
            start_ids=start_ids,
            end_ids=end_ids,
            end=end,
            token_texts=texts,
            thought_mask=_mask([i for i in thoughts if i not in barred_ids], vocab_size),
            free_mask=_mask([*thoughts, *end_tokens], vocab_size),
            answer_end_ids=tuple(end_tokens),
            overlong_ids=tuple(i for i, text in enumerate(texts) if end[-1:] in text[:-1]),
            gap_ids=tuple(i for i, text in enumerate(texts) if text in GAP_TEXTS),
        )


class _Phase(Enum):
    OPENING = "opening"
    """Reasoning may still begin: the output is empty, blank, or part of the start marker."""
    THINKING = "thinking"
    GAP = "gap"
    """The reasoning has just ended; a line break may come before the answer."""
    ANSWER = "answer"


class ReasoningConstraint:
    """Follows one sequence through its reasoning into its answer.

    `constraint` limits the answer. None: the answer is free text.
    """

    def __init__(self, markers: MarkerTokens, constraint: StartedConstraint | None) -> None:
        self._markers = markers
        self._constraint = constraint
        self._may_be_empty = constraint is not None and any(
            map(constraint.allows, markers.answer_end_ids)
        )
        self._phase = _Phase.THINKING if markers.spec.starts_open else _Phase.OPENING
        self._num_start_tokens = 0
        self._num_thought_tokens = 0
        self._forced_ids: list[int] = []
        self._tail = b""
        self._check_budget()

    def fork(self) -> "ReasoningConstraint":
        """See `TokenConstraint`."""
        forked = copy(self)
        forked._forced_ids = [*self._forced_ids]
        if self._constraint is not None:
            forked._constraint = self._constraint.fork()
        return forked

    @property
    def is_finished(self) -> bool:
        return self._constraint is not None and self._constraint.is_finished

    def fill_bitmask(self, row: npt.NDArray[np.int32]) -> bool:
        if self._phase is _Phase.THINKING:
            return self._fill_thinking(row)
        if (
            self._num_start_tokens > 0
            and self._phase is _Phase.OPENING
            and self._constraint is not None
        ):
            _allow_only(row, self._markers.start_ids[self._num_start_tokens])
            return True
        if self._constraint is None or not self._constraint.fill_bitmask(row):
            return False
        if self._phase is _Phase.OPENING:
            _allow(row, self._markers.start_ids[:1])
        elif self._phase is _Phase.GAP:
            _allow(row, self._markers.gap_ids)
        return True

    def _fill_thinking(self, row: npt.NDArray[np.int32]) -> bool:
        markers = self._markers
        if self._forced_ids:
            _allow_only(row, self._forced_ids[0])
            return True
        if self._constraint is None and markers.spec.budget is None:
            return False
        row[:] = markers.free_mask if self._may_be_empty else markers.thought_mask
        if self._tail:
            for token_id in markers.overlong_ids:
                text = self._tail + markers.token_texts[token_id]
                if markers.end in text and not text.endswith(markers.end):
                    _forbid(row, token_id)
        return True

    def accept(self, token_id: int) -> None:
        match self._phase:
            case _Phase.OPENING:
                self._accept_opening(token_id)
            case _Phase.THINKING:
                self._accept_thought(token_id)
            case _Phase.GAP | _Phase.ANSWER:
                self._accept_answer(token_id)

    def _accept_opening(self, token_id: int) -> None:
        if not self._opens(token_id):
            is_blank = self._constraint is None and token_id in self._markers.gap_ids
            if not is_blank:
                self._phase = _Phase.ANSWER
                self._accept_answer(token_id)
            return
        self._num_start_tokens += 1
        if self._num_start_tokens == len(self._markers.start_ids):
            self._phase = _Phase.THINKING
            self._check_budget()

    def _opens(self, token_id: int) -> bool:
        """Return whether the token continues the start marker. If in doubt, it is the answer's."""
        start_ids = self._markers.start_ids
        if token_id != start_ids[self._num_start_tokens]:
            return False
        if self._constraint is None or self._num_start_tokens > 0 or len(start_ids) == 1:
            return True
        return not self._constraint.allows(token_id)

    def _accept_thought(self, token_id: int) -> None:
        markers = self._markers
        self._num_thought_tokens += 1
        text = self._tail + markers.token_texts[token_id]
        if self._forced_ids:
            self._forced_ids.pop(0)
            is_over = not self._forced_ids
        else:
            is_over = markers.end in text
        if is_over:
            self._phase = _Phase.GAP
            return
        self._tail = _partial_marker(text, markers.end)
        self._check_budget()

    def _check_budget(self) -> None:
        budget = self._markers.spec.budget
        if self._phase is not _Phase.THINKING or budget is None or self._forced_ids:
            return
        if self._num_thought_tokens >= budget:
            self._forced_ids = list(self._markers.end_ids)

    def _accept_answer(self, token_id: int) -> None:
        was_gap, self._phase = self._phase is _Phase.GAP, _Phase.ANSWER
        if self._constraint is None:
            return
        if was_gap and token_id in self._markers.gap_ids and not self._constraint.allows(token_id):
            return
        self._constraint.accept(token_id)


def _mask(token_ids: list[int], vocab_size: int) -> npt.NDArray[np.int32]:
    bits = np.zeros((vocab_size + 31) // 32 * 32, dtype=np.uint8)
    bits[token_ids] = True
    return np.packbits(bits, bitorder="little").view(np.int32)


def _partial_marker(text: bytes, marker: bytes) -> bytes:
    """Return the longest suffix of `text` that is a proper prefix of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return text[-length:]
    return b""


def _bit(token_id: int) -> int:
    """Return the bit of `token_id` in its word, as a signed 32-bit integer."""
    bit = token_id % 32
    return 1 << bit if bit < 31 else -(1 << 31)


def _allow(row: npt.NDArray[np.int32], token_ids: tuple[int, ...]) -> None:
    for token_id in token_ids:
        row[token_id // 32] |= _bit(token_id)


def _forbid(row: npt.NDArray[np.int32], token_id: int) -> None:
    row[token_id // 32] &= ~_bit(token_id)


def _allow_only(row: npt.NDArray[np.int32], token_id: int) -> None:
    row.fill(0)
    _allow(row, (token_id,))
