"""Guesses a sequence's next tokens from a text that it may repeat (arXiv 2304.04487).

The text is a client's prediction of the answer, or the sequence's own past. A step verifies the
guesses with logits that it computes along the way: one that is not just what would have been
chosen is dropped, so that guessing changes the speed and not the answer.
"""

from collections.abc import Sequence as Many

MAX_DRAFT = 16
"""Tokens guessed at once, at most."""
_FIRST_DRAFT = 4
_PREDICTION_KEYS = 2
_PAST_KEYS = 3
"""So many of the last tokens must occur in the text for it to be taken up there: fewer in a text
that is known to be like the answer."""


class TextFollower:
    """Follows where in a prediction a sequence is.

    While the tokens are the text's, the place moves on with them. After one that is not, the
    sequence is lost until its last tokens occur in the text: then it is at the first such place
    after the last known one, or else at the last one before.
    """

    def __init__(self, text: Many[int], num_keys: int = _PREDICTION_KEYS) -> None:
        self.text = text
        self.matched: set[int] = set()
        """Places of the text whose tokens the sequence repeated."""
        self._num_keys = num_keys
        self._tail: tuple[int, ...] = ()
        self._place = 0
        self._is_lost = False
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._num_indexed = num_keys
        self._index()

    def follow(self, token_id: int) -> None:
        """Take the sequence's next token."""
        self._tail = (*self._tail, token_id)[-self._num_keys :]
        is_inside = not self._is_lost and self._place < len(self.text)
        if is_inside and self.text[self._place] == token_id:
            self.matched.add(self._place)
            self._place += 1
            return
        places = self._places.get(self._tail, ())
        self._is_lost = not places
        if places:
            self._place = self._choose(places)

    def next_tokens(self, limit: int) -> list[int]:
        """What the text goes on with; nothing while the sequence is lost."""
        return [] if self._is_lost else list(self.text[self._place : self._place + limit])

    def _choose(self, places: list[int]) -> int:
        return next((place for place in places if place > self._place), places[-1])

    def _index(self) -> None:
        """List the places of the text by the tokens before each; its end is none."""
        for place in range(self._num_indexed, len(self.text)):
            key = tuple(self.text[place - self._num_keys : place])
            self._places.setdefault(key, []).append(place)
        self._num_indexed = max(self._num_indexed, len(self.text))


class PastFollower(TextFollower):
    """Follows a sequence in its own growing past, at the latest place where its tail occurred."""

    def __init__(self, token_ids: Many[int]) -> None:
        super().__init__(token_ids, _PAST_KEYS)
        self._tail = tuple(token_ids[-_PAST_KEYS:])
        places = self._places.get(self._tail, ())
        self._is_lost = not places
        if places:
            self._place = self._choose(places)

    def follow(self, token_id: int) -> None:
        """Take the sequence's next token, which is in the text already."""
        self._index()
        super().follow(token_id)

    def _choose(self, places: list[int]) -> int:
        return places[-1]


class Drafter:
    """Drafts for one sequence: longer ones after a draft that held, shorter ones after others."""

    def __init__(self, follower: TextFollower) -> None:
        self._follower = follower
        self._length = _FIRST_DRAFT

    def follow(self, token_id: int) -> None:
        """Take the sequence's next token."""
        self._follower.follow(token_id)

    def draft(self, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may come next."""
        return tuple(self._follower.next_tokens(min(limit, self._length)))

    def judge(self, num_drafted: int, num_accepted: int) -> None:
        """Learn what became of the last draft."""
        is_whole = num_accepted == num_drafted
        self._length = min(2 * self._length, MAX_DRAFT) if is_whole else max(1, num_accepted)
