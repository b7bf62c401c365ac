"""Drafts a sequence's next tokens from a text that it may repeat (arXiv 2304.04487).

The text is a client's prediction of the answer, or the sequence's own past. A step verifies the
draft tokens with logits that it computes along the way. A draft token is accepted only if it is
the token that would have been chosen anyway, so drafts change the speed but not the answer.
"""

from bisect import bisect_right
from collections import abc
from itertools import takewhile

MAX_DRAFT = 16
"""At most this many draft tokens per item."""
_FIRST_DRAFT = 4
_PREDICTION_KEYS = 2
PAST_KEYS = 3
"""How many of the last tokens must occur in the text before tokens are drafted from there. A
prediction needs fewer than the past: it is known to resemble the answer."""
FIRST_RATE = 0.5
"""What is assumed of a text's acceptance rate before a sequence has matched it."""
_RATE_WEIGHT = 0.15
_MAX_LISTED_AT_ONCE = 4096
"""Positions indexed per call, a few milliseconds of work. A text may be far longer, and every
sequence waits meanwhile."""


class PositionIndex:
    """Lists the positions in a text by the `num_keys` tokens before each.

    The end of the text is not listed. Each call of `find` indexes a further part of the text, which
    may itself grow meanwhile.
    """

    def __init__(
        self, text: abc.Sequence[int], num_keys: int, start: "PositionIndex | None" = None
    ) -> None:
        """`start` is the index of a text that `text` begins with, if several texts do."""
        self.text = text
        self.num_keys = num_keys
        self._positions: dict[tuple[int, ...], list[int]] = {}
        self._start = start
        self._end = num_keys if start is None else max(num_keys, len(start.text))

    def find(self, tail: tuple[int, ...]) -> abc.Sequence[int]:
        """Return the positions after `tail`, in order, as far as the text is indexed.

        Those in the start of the text are returned only if there are no others.
        """
        end = min(len(self.text), self._end + _MAX_LISTED_AT_ONCE)
        for position in range(self._end, end):
            key = tuple(self.text[position - self.num_keys : position])
            self._positions.setdefault(key, []).append(position)
        self._end = max(self._end, end)
        positions = self._positions.get(tail)
        if positions is None and self._start is not None:
            return self._start.find(tail)
        return positions or ()


class TextFollower:
    """Follows a sequence's position in a prediction.

    While generated tokens match the text, the position advances. After a mismatch nothing is
    drafted until the last generated tokens occur in the text again. The position then moves to the
    first such match after the old position, or else to the last match before it.
    """

    def __init__(self, text: abc.Sequence[int], index: PositionIndex | None = None) -> None:
        """`index` is the text's index, if other followers share it."""
        self.text = text
        self.matched: set[int] = set()
        """Positions in the text whose tokens the sequence has repeated."""
        self._index = index or PositionIndex(text, _PREDICTION_KEYS)
        self._tail: tuple[int, ...] = ()
        self._position = 0
        self._has_match = True

    @classmethod
    def for_choices(cls, text: abc.Sequence[int], n: int) -> "list[TextFollower]":
        """Return one follower per choice. They share one index of the text."""
        index = PositionIndex(text, _PREDICTION_KEYS)
        return [cls(text, index) for _ in range(n)]

    @property
    def has_match(self) -> bool:
        """True if the text predicts the next token."""
        return self._has_match and self._position < len(self.text)

    def predicts(self, token_id: int) -> bool:
        """True if the text predicts this token next."""
        return self.has_match and self.text[self._position] == token_id

    def follow(self, token_id: int) -> bool:
        """Advance past the sequence's next token.

        Return True if it repeats a token of the text that the sequence has not repeated before.
        """
        self._tail = (*self._tail, token_id)[-self._index.num_keys :]
        if not self.predicts(token_id):
            self._match()
            return False
        is_new = self._position not in self.matched
        self.matched.add(self._position)
        self._position += 1
        return is_new

    def next_tokens(self, limit: int) -> list[int]:
        """Return the next tokens of the text, at most `limit`; none after a mismatch."""
        return list(self.text[self._position : self._position + limit]) if self._has_match else []

    def _match(self) -> None:
        positions = self._index.find(self._tail)
        self._has_match = bool(positions)
        if positions:
            self._position = self._choose(positions)

    def _choose(self, positions: abc.Sequence[int]) -> int:
        i = bisect_right(positions, self._position)
        return positions[i] if i < len(positions) else positions[-1]


class PastFollower(TextFollower):
    """Follows a sequence in its own past, at the latest position where its last tokens occurred."""

    def __init__(self, token_ids: abc.Sequence[int], index: PositionIndex | None = None) -> None:
        """`token_ids` are the sequence's own, and `index` is theirs, if there is one already.

        Append a token to `token_ids` before calling `follow`.
        """
        super().__init__(token_ids, index or PositionIndex(token_ids, PAST_KEYS))
        self._tail = tuple(token_ids[-PAST_KEYS:])
        self._match()

    def follow(self, token_id: int) -> bool:
        """Advance past the sequence's next token. Return False: no prediction had it."""
        super().follow(token_id)
        return False

    def next_tokens(self, limit: int) -> list[int]:
        """As in a prediction. Where the text ends, the draft goes on as it began: if the sequence
        repeats the tokens since the match, it may do so again."""
        tokens = super().next_tokens(limit)
        num_known = len(tokens)
        while 0 < len(tokens) < limit:
            tokens += tokens[: min(num_known, limit - len(tokens))]
        return tokens

    def _choose(self, positions: abc.Sequence[int]) -> int:
        return positions[-1]


class Drafter:
    """Drafts tokens for one sequence: more after a draft that was right, fewer after others."""

    def __init__(self, follower: TextFollower, vocab_size: int) -> None:
        """A draft ends before a token id of the text that is not below the model's `vocab_size`."""
        self._follower = follower
        self._vocab_size = vocab_size
        self._length = _FIRST_DRAFT

    @property
    def has_match(self) -> bool:
        """True if the text predicts the next token."""
        return self._follower.has_match

    def follow(self, token_id: int) -> bool:
        """Advance past the sequence's next token; see the follower."""
        return self._follower.follow(token_id)

    def draft(self, limit: int) -> tuple[int, ...]:
        """Return at most `limit` draft tokens."""
        tokens = self._follower.next_tokens(min(limit, self._length))
        return tuple(takewhile(lambda token: token < self._vocab_size, tokens))

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """Adapt the length of the next draft to the result of the last one."""
        is_whole = num_accepted == num_drafted
        self._length = min(2 * self._length, MAX_DRAFT) if is_whole else max(1, num_accepted)


class AdaptiveDrafter(Drafter):
    """Drafts as many tokens as `draft_control` says. It counts how often its text is right, also
    where nothing is drafted."""

    def __init__(self, follower: TextFollower, vocab_size: int) -> None:
        super().__init__(follower, vocab_size)
        self.rate = FIRST_RATE
        """The acceptance rate: how often the text predicted the next token, of late."""
        self._length = 0

    def follow(self, token_id: int) -> bool:
        if self._follower.has_match:
            self.rate += _RATE_WEIGHT * (self._follower.predicts(token_id) - self.rate)
        return super().follow(token_id)

    def set_length(self, num_tokens: int) -> None:
        """Set how many tokens the next draft has at most."""
        self._length = num_tokens

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """Do nothing: `follow` has seen all tokens."""
