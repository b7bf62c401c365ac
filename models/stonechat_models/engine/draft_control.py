"""Decides how many draft tokens a step carries, so that it gives the most tokens a second.

It weighs what draft tokens bring, by the acceptance rate of each sequence, against what they cost,
by the measured times of steps. Where they do not pay (a text that does not repeat, a large batch)
a step has none.
"""

from collections import abc
from heapq import heapify, heappop, heapreplace
from math import log, log1p

from stonechat_models.engine.prompt_lookup import MAX_DRAFT, AdaptiveDrafter
from stonechat_models.engine.sequence import Scheduled, Sequence
from stonechat_models.engine.step_costs import StepCosts

_LEAST_GAIN = 0.03
"""A step has draft tokens if they promise at least this much more speed."""


class DraftControl:
    """Sets the lengths of drafts before a step is scheduled, and learns from the step's time."""

    def __init__(self, max_tokens: int) -> None:
        """`max_tokens`: at most this many draft tokens in a step, over all sequences."""
        self.costs = StepCosts()
        self._max_tokens = max_tokens
        self._measured: tuple[int, int] | None = None
        """Sequences and draft tokens of the step that runs. None: its time says nothing."""

    def plan(self, decoding: abc.Sequence[Sequence], *, is_alone: bool) -> None:
        """Set how many tokens each of the sequences that decode drafts in the next step.

        `is_alone`: the step computes no prompt. Otherwise nothing is drafted.
        """
        drafters: list[AdaptiveDrafter] = []
        for sequence in decoding:
            drafter = sequence.drafter
            if isinstance(drafter, AdaptiveDrafter):
                drafter.set_length(0)
                if is_alone and drafter.has_match:
                    drafters.append(drafter)
        if drafters and self.costs.plain_seconds(len(decoding)) is not None:
            lengths = self._best_lengths([d.rate for d in drafters], len(decoding))
            for drafter, length in zip(drafters, lengths, strict=True):
                drafter.set_length(length)

    def begin(self, items: abc.Sequence[Scheduled]) -> None:
        """Note what the step that runs now computes."""
        num_drafts = 0
        for item in items:
            if item.num_tokens != 1 or not item.reaches_end or item.num_again:
                self._measured = None
                return
            num_drafts += len(item.draft)
        self._measured = len(items), num_drafts

    def finish(self, seconds: float) -> None:
        """Learn from the time that the step took."""
        if self._measured is not None:
            self.costs.observe(*self._measured, seconds)
            self._measured = None

    def discard(self) -> None:
        """Learn nothing from the step that runs: it failed in part."""
        self._measured = None

    def _best_lengths(self, rates: list[float], num_seqs: int) -> list[int]:
        """Return the lengths of drafts that promise the most speed, on average over the sequences.

        The n-th draft token of a sequence is right if all before it are: rate ** n. The tokens are
        taken in the order of what they add to the speed of their sequence, and the best number of
        them is kept. Speeds are compared by their logarithms: it does not pay to make one sequence
        twice as fast and another one half as fast.
        """
        limit = min(self._max_tokens, MAX_DRAFT * len(rates))
        curve = self.costs.curve(num_seqs, limit)
        lengths, expected, chances = [0] * len(rates), [1.0] * len(rates), [*rates]
        gains = [(-log1p(rate), i) for i, rate in enumerate(rates)]
        heapify(gains)
        taken: list[int] = []
        gained, best, num_best = 0.0, num_seqs * _LEAST_GAIN, 0
        while gains and len(taken) < limit:
            gain, i = gains[0]
            gained -= gain
            taken.append(i)
            score = gained - num_seqs * log(curve[len(taken)])
            if score > best:
                best, num_best = score, len(taken)
            lengths[i] += 1
            expected[i] += chances[i]
            chances[i] *= rates[i]
            if lengths[i] < MAX_DRAFT:
                heapreplace(gains, (-log1p(chances[i] / expected[i]), i))
            else:
                heappop(gains)
        for i in taken[num_best:]:
            lengths[i] -= 1
        return lengths
