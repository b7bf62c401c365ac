"""What a tokenizer puts around the two texts of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from stonechat_models.errors import UnsupportedModelError

PROBE = ("a", "b")


@dataclass(frozen=True, slots=True)
class PairFrame:
    """A pair is `before`, the first text, `between`, the second text, `behind`."""

    before: list[int]
    between: list[int]
    behind: list[int]
    num_between_of_first: int
    """How many tokens of `between` have the token type of the first text."""
    has_types: bool
    """Whether tokens have the type 0, and those from the second text on 1. Else all have 0."""

    @classmethod
    def of(cls, backend: Backend) -> "PairFrame":
        """Find out what a tokenizer does to pairs.

        Raises `UnsupportedModelError` if it does not keep both texts in their order.
        """
        pair = backend.encode(*PROBE, add_special_tokens=True)
        texts = [backend.encode(text, add_special_tokens=False).ids for text in PROBE]
        ids, types, places = pair.ids, pair.type_ids, pair.sequence_ids
        (first, end), (second, last) = [
            (places.index(i), places.index(i) + places.count(i)) if i in places else (0, 0)
            for i in (0, 1)
        ]
        if [ids[first:end], ids[second:last]] != texts or not first < end <= second < last:
            raise UnsupportedModelError("its tokenizer does not keep the two texts of a pair")
        num_first = types.count(0)
        if types != [0] * num_first + [1] * (len(types) - num_first):
            raise UnsupportedModelError(f"its tokenizer gives a pair the token types {types}")
        return cls(
            before=ids[:first],
            between=ids[end:second],
            behind=ids[last:],
            num_between_of_first=min(num_first, second) - end,
            has_types=num_first < len(types),
        )

    @property
    def num_tokens(self) -> int:
        """How many tokens a pair has beside those of its texts."""
        return len(self.before) + len(self.between) + len(self.behind)

    def join(self, first: Sequence[int], second: Sequence[int]) -> tuple[list[int], int]:
        """Return the tokens of a pair, and how many of them belong to the first text."""
        num_first = len(self.before) + len(first) + self.num_between_of_first
        return [*self.before, *first, *self.between, *second, *self.behind], num_first
