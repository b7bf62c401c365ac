"""Decides how many draft tokens a step carries, so that its sequences advance the fastest.

It weighs what draft tokens bring, by the acceptance rate of each sequence, against what they cost,
by the measured times of steps and of the draft model. Where they do not pay (a text that does not
repeat, a large batch) a step has none.

Speeds are compared by their logarithms, summed over the sequences: it does not pay to make one
sequence twice as fast and another one half as fast.
"""

from collections import abc
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from math import exp, log, log1p

from stonechat_models.engine.prompts.lookup import MAX_DRAFT, AdaptiveDrafter
from stonechat_models.engine.sequence import DraftState, Sequence
from stonechat_models.engine.speculation.draft_model import MAX_GAP, DraftModel
from stonechat_models.engine.speculation.step_costs import PassCosts, StepCosts

LEAST_GAIN = 0.03
"""A step has draft tokens if they promise at least this much more speed."""

_LIKE_OTHERS = 0.8
"""The draft model catches up with a sequence if its acceptance rate is at least this share of that
of all."""


@dataclass(slots=True)
class LookupPlan:
    """What sequences draft from their own past, and what that brings."""

    lengths: list[int]
    gain: float = 0.0
    """The sum over the sequences of the logarithm of their tokens a step."""
    score: float = 0.0
    """The gain less what the draft tokens cost. 0: nothing is drafted."""


class DraftControl:
    """Sets the lengths of drafts before a step is scheduled, by what steps and drafts cost."""

    def __init__(self, max_tokens: int, draft_model: DraftModel | None = None) -> None:
        """`max_tokens`: at most this many draft tokens in a step, over all sequences."""
        self.costs = StepCosts()
        self.pass_costs = PassCosts()
        self.lagging: Sequence | None = None
        """The sequence that the draft model is to catch up with beside the next step."""
        self._draft_model = draft_model
        self._max_tokens = max_tokens

    def plan(
        self, decoding: abc.Sequence[Sequence], drafters: abc.Sequence[AdaptiveDrafter]
    ) -> None:
        """Set how many tokens the sequences of a step draft, which all decode.

        `drafters` are those of them that have a match. No other drafter has a length yet.
        """
        if self.costs.plain_seconds(len(decoding)) is None:
            return
        plan = self._plan_lookups(drafters, len(decoding)) if drafters else LookupPlan([])
        for drafter, length in zip(drafters, plan.lengths, strict=True):
            drafter.set_length(length)
        if self._draft_model is not None:
            self._plan_model(decoding, plan.score)

    def _plan_lookups(self, drafters: abc.Sequence[AdaptiveDrafter], num_seqs: int) -> LookupPlan:
        """Return the lengths of drafts that promise the most speed.

        The n-th draft token of a sequence is right if all before it are: rate ** n. The tokens are
        taken in the order of what they add to the speed of their sequence, and the best number of
        them is kept.
        """
        rates = [drafter.rate for drafter in drafters]
        limit = min(self._max_tokens, MAX_DRAFT * len(rates))
        curve = self.costs.curve(num_seqs, limit)
        lengths, expected, chances = [0] * len(rates), [1.0] * len(rates), [*rates]
        gains = [(-log1p(rate), i) for i, rate in enumerate(rates)]
        heapify(gains)
        taken: list[int] = []
        gained, num_best, best = 0.0, 0, LookupPlan(lengths, score=num_seqs * LEAST_GAIN)
        while gains and len(taken) < limit:
            gain, i = gains[0]
            gained -= gain
            taken.append(i)
            score = gained - num_seqs * log(curve[len(taken)])
            if score > best.score:
                best.gain, best.score, num_best = gained, score, len(taken)
            lengths[i] += 1
            expected[i] += chances[i]
            chances[i] *= rates[i]
            if lengths[i] < MAX_DRAFT:
                heapreplace(gains, (-log1p(chances[i] / expected[i]), i))
            else:
                heappop(gains)
        for i in taken[num_best:]:
            lengths[i] -= 1
        return best if num_best else LookupPlan(lengths)

    # --- the draft model ---

    def _plan_model(self, decoding: abc.Sequence[Sequence], least_score: float) -> None:
        """Let the draft model draft where that promises more than `least_score`, the score of what
        the sequences draft from their past."""
        model = self._draft_model
        assert model is not None
        if model.is_broken:
            return
        ready: list[tuple[Sequence, DraftState]] = []
        lookups: list[AdaptiveDrafter] = []
        num_seqs, saved_seconds = len(decoding), -1.0
        for sequence in decoding:
            state, drafter = sequence.draft_state, sequence.drafter
            if drafter is not None and drafter.has_match:
                if not isinstance(drafter, AdaptiveDrafter):
                    continue
                if state is None or drafter.rate >= state.rate:
                    lookups.append(drafter)
                    continue
            if state is None or state.is_off:
                continue
            gap = model.gap(sequence)
            if gap <= MAX_GAP:
                ready.append((sequence, state))
            elif state.rate < _LIKE_OTHERS * model.rate:
                model.rest([state])
            elif self.lagging is None:
                if saved_seconds < 0:
                    saved_seconds = self._saved_seconds(num_seqs)
                if self._pays_to_catch_up(sequence, gap, saved_seconds, num_seqs):
                    self.lagging = sequence
        if saved_seconds == 0:
            model.rest()
        plan = self._plan_lookups(lookups, num_seqs) if lookups else LookupPlan([])
        rates = [state.rate for _, state in ready]
        length, score = self._best_length(rates, num_seqs, plan)
        if length and score > max(least_score, num_seqs * LEAST_GAIN):
            for drafter, n in zip(lookups, plan.lengths, strict=True):
                drafter.set_length(n)
            for sequence, state in ready:
                state.length = length
                if isinstance(sequence.drafter, AdaptiveDrafter):
                    sequence.drafter.set_length(0)
        elif not least_score:
            model.rest([state for _, state in ready])
            self.pass_costs.relax()

    def _best_length(
        self, rates: list[float], num_seqs: int, plan: LookupPlan
    ) -> tuple[int, float]:
        """Return how many tokens the draft model best drafts for each sequence with these rates,
        beside a plan of lookups, and the score of both."""
        plain = self.costs.plain_seconds(num_seqs)
        assert self._draft_model is not None
        assert plain is not None
        num_lookups, best, best_score = sum(plan.lengths), 0, 0.0
        limit = self._max_tokens - num_lookups
        curve = self.costs.curve(num_seqs, self._max_tokens)
        pass_cost = self.pass_costs.seconds(len(rates)) / plain
        expected, chances = [1.0] * len(rates), [1.0] * len(rates)
        for length in range(1, self._draft_model.max_tokens + 1):
            num_drafts = length * len(rates)
            if not 0 < num_drafts <= limit:
                break
            gain = plan.gain
            for i, rate in enumerate(rates):
                chances[i] *= rate
                expected[i] += chances[i]
                gain += log(expected[i])
            cost = curve[num_lookups + num_drafts] + length * pass_cost
            score = gain - num_seqs * log(cost)
            if score > best_score:
                best, best_score = length, score
        return best, best_score

    def _saved_seconds(self, num_seqs: int) -> float:
        """Return what a step of so many sequences would save if the draft model drafted for all."""
        plain = self.costs.plain_seconds(num_seqs)
        assert self._draft_model is not None
        assert plain is not None
        rates = [self._draft_model.rate] * num_seqs
        length, score = self._best_length(rates, num_seqs, LookupPlan([]))
        if not length or score <= num_seqs * LEAST_GAIN:
            return 0.0
        return plain * (1 - exp(-score / num_seqs))

    def _pays_to_catch_up(
        self, sequence: Sequence, gap: int, saved_seconds: float, num_seqs: int
    ) -> bool:
        """Whether the draft model should compute what it lacks of the sequence.

        That delays all sequences. It is done once the answer is so long, and may become so much
        longer, that drafts would have saved that time.
        """
        num_left = sequence.max_tokens - sequence.num_output_tokens
        cost = gap * self.pass_costs.catch_up_seconds * num_seqs
        return 0.0 < min(sequence.num_output_tokens, num_left) * saved_seconds >= cost
