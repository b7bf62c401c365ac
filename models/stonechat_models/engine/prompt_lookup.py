"""Guesses a sequence's next tokens from a text that it may repeat (arXiv 2304.04487).

The text is a client's prediction of the answer, or the sequence's own past. A step verifies the
guesses with logits that it computes along the way: one that is not just what would have been
chosen is dropped, so that guessing changes the speed and not the answer.
"""

from bisect import bisect_right
from collections import abc
from itertools import takewhile

MAX_DRAFT = 16
"""Tokens guessed at once, at most."""
_FIRST_DRAFT = 4
_PREDICTION_KEYS = 2
_PAST_KEYS = 3
"""So many of the last tokens must occur in the text for it to be taken up there: fewer in a text
that is known to be like the answer."""
_MAX_LISTED_AT_ONCE = 4096
"""Some milliseconds' work: a text may be far longer, and every sequence waits meanwhile."""


class PositionIndex:
    """Lists the places of a text by the `num_keys` tokens before each; its end is none.

    It grows with every question by a part of the text, which may be growing too.
    """

    def __init__(self, text: abc.Sequence[int], num_keys: int) -> None:
        self.text = text
        self.num_keys = num_keys
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._end = num_keys

    def find(self, tail: tuple[int, ...]) -> abc.Sequence[int]:
        """Return the places known by now that `tail` comes before, in order."""
        end = min(len(self.text), self._end + _MAX_LISTED_AT_ONCE)
        for place in range(self._end, end):
            key = tuple(self.text[place - self.num_keys : place])
            self._places.setdefault(key, []).append(place)
        self._end = max(self._end, end)
        return self._places.get(tail, ())


class TextFollower:
    """Follows where in a prediction a sequence is.

    While the tokens are the text's, the place moves on with them. After one that is not, the
    sequence is lost until its last tokens occur in the text: then it is at the first such place
    after the last known one, or else at the last one before.
    """

    def __init__(self, text: abc.Sequence[int], index: PositionIndex | None = None) -> None:
        """`index` is that of the text, where others follow it too."""
        self.text = text
        self.matched: set[int] = set()
        """Places of the text whose tokens the sequence repeated."""
        self._index = index or PositionIndex(text, _PREDICTION_KEYS)
        self._tail: tuple[int, ...] = ()
        self._place = 0
        self._has_match = True

    @classmethod
    def for_choices(cls, text: abc.Sequence[int], n: int) -> "list[TextFollower]":
        """One follower a choice; they share what they list of the text."""
        index = PositionIndex(text, _PREDICTION_KEYS)
        return [cls(text, index) for _ in range(n)]

    @property
    def has_match(self) -> bool:
        """True where the text says what comes next."""
        return self._has_match and self._place < len(self.text)

    def follow(self, token_id: int) -> None:
        """Take the sequence's next token."""
        self._tail = (*self._tail, token_id)[-self._index.num_keys :]
        if self.has_match and self.text[self._place] == token_id:
            self.matched.add(self._place)
            self._place += 1
            return
        self._take_up()

    def next_tokens(self, limit: int) -> list[int]:
        """What the text goes on with; nothing while the sequence is lost."""
        return list(self.text[self._place : self._place + limit]) if self._has_match else []

    def _take_up(self) -> None:
        places = self._index.find(self._tail)
        self._has_match = bool(places)
        if places:
            self._place = self._choose(places)

    def _choose(self, places: abc.Sequence[int]) -> int:
        later = bisect_right(places, self._place)
        return places[later] if later < len(places) else places[-1]


class PastFollower(TextFollower):
    """Follows a sequence in its own growing past, at the latest place where its tail occurred."""

    def __init__(self, token_ids: abc.Sequence[int]) -> None:
        """`token_ids` are the sequence's, and hold each token before it is followed."""
        super().__init__(token_ids, PositionIndex(token_ids, _PAST_KEYS))
        self._tail = tuple(token_ids[-_PAST_KEYS:])
        self._take_up()

    def _choose(self, places: abc.Sequence[int]) -> int:
        return places[-1]


class Drafter:
    """Drafts for one sequence: longer ones after a draft that held, shorter ones after others."""

    def __init__(self, follower: TextFollower, vocab_size: int) -> None:
        """Of tokens that the text may hold beyond the model's `vocab_size`, none is guessed."""
        self._follower = follower
        self._vocab_size = vocab_size
        self._length = _FIRST_DRAFT

    @property
    def has_match(self) -> bool:
        """True when there are tokens to draft."""
        return self._follower.has_match

    def follow(self, token_id: int) -> None:
        """Take the sequence's next token."""
        self._follower.follow(token_id)

    def draft(self, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may come next."""
        tokens = self._follower.next_tokens(min(limit, self._length))
        return tuple(takewhile(lambda token: token < self._vocab_size, tokens))

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """Learn what became of the last draft."""
        is_whole = num_accepted == num_drafted
        self._length = min(2 * self._length, MAX_DRAFT) if is_whole else max(1, num_accepted)
