"""How much longer a step takes with draft tokens than without, as measured while steps run.

A step with K draft tokens is compared with the steps of as many sequences that had none shortly
before. So contexts that grow and a machine that slows down change both sides, not their ratio.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

from stonechat_models.engine.speculation.draft_model import PassTime

_WEIGHT = 0.15
"""Of a new measurement in a moving average."""
_MOST = 4.0
"""A measurement counts as at most this many times the average: one long pause is no cost."""
_LEAST_PLAIN = 2
"""So many steps without draft tokens are measured first. The first one may be cold."""
_MOST_SINCE = 100
"""After so many steps with draft tokens, one without them is measured again."""
_RELAX_INTERVAL = 64
_RELAX_SHARE = 0.05
"""After this many steps without draft tokens, this share of what is known of the cost of draft
tokens is forgotten. So they are tried again at long intervals."""
_REST = 0.999
_FIRST_GUESS = 0.25
"""What a draft token costs before any was measured, if a step without draft tokens costs 1 for each
of its sequences. It is tried if it promises more than that."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of sequences, and above 8 numbers of draft tokens, that are told apart."""


@dataclass(slots=True)
class _Average:
    """A moving average that trusts its first measurements more."""

    value: float
    num_measured: int = 0
    """A guess counts as a measurement."""
    num_since: int = 0
    """Steps with draft tokens since the last measurement, of steps without."""

    def update(self, measured: float) -> None:
        self.num_measured += 1
        self.num_since = 0
        weight = max(_WEIGHT, 1 / self.num_measured)
        self.value += weight * (min(measured, _MOST * self.value) - self.value)


@dataclass(slots=True)
class StepCosts:
    """Times of steps that only decode, by their numbers of sequences and draft tokens."""

    _plain: dict[int, _Average] = field(default_factory=dict)
    """Steps without draft tokens, by their number of sequences."""
    _ratios: dict[int, dict[int, _Average]] = field(default_factory=dict)
    """By size, what draft tokens cost: by their number, seconds relative to a plain step."""
    _curves: dict[int, list[float]] = field(default_factory=dict)
    """The same for every number of draft tokens, until something new is measured."""
    _num_plain: int = 0

    def plain_seconds(self, num_seqs: int) -> float | None:
        """Seconds of a step of these sequences without draft tokens.

        None: such a step is to be measured first, because few were, or none of late.
        """
        plain = self._plain.get(num_seqs)
        if plain is None or plain.num_measured < _LEAST_PLAIN or plain.num_since >= _MOST_SINCE:
            return None
        return plain.value

    def observe(self, num_seqs: int, seconds: float, num_drafts: int = 0) -> None:
        """Record a step that computed one token of each sequence, and these draft tokens."""
        plain = self._plain.get(num_seqs)
        if num_drafts == 0:
            if plain is None:
                plain = self._plain[num_seqs] = _Average(seconds)
            plain.update(seconds)
            self._num_plain += 1
            if self._num_plain % _RELAX_INTERVAL == 0:
                self._relax()
        elif plain is not None and plain.value > 0.0:
            plain.num_since += 1
            size = _size(num_seqs)
            ratios = self._ratios.setdefault(size, {})
            key = num_drafts if num_drafts <= _SIZES[5] else _size(num_drafts)
            if key not in ratios:
                ratios[key] = _Average(self.curve(num_seqs, key)[key], num_measured=1)
            ratios[key].update(seconds / plain.value)
            self._curves.pop(size, None)

    def curve(self, num_seqs: int, num_drafts: int) -> list[float]:
        """Return what 0, 1, … `num_drafts` (or more) draft tokens cost, 1.0 being a plain step.

        Between two measured numbers of draft tokens the cost grows evenly. Behind the largest one
        it grows half as fast as before it: where that is too little, it is tried and measured.
        """
        size = _size(num_seqs)
        curve = self._curves.get(size)
        if curve is None or len(curve) <= num_drafts:
            slope = _FIRST_GUESS / num_seqs
            curve = _interpolated(self._ratios.get(size, {}), num_drafts, slope)
            self._curves[size] = curve
        return curve

    def _relax(self) -> None:
        for ratios in self._ratios.values():
            for ratio in ratios.values():
                ratio.value += _RELAX_SHARE * (1.0 - ratio.value)
        self._curves.clear()


@dataclass(slots=True)
class PassCosts:
    """Times of the draft model. What was never measured counts as nothing: so it is tried."""

    catch_up_seconds: float = 0.0
    """For each token that the draft model catches up with."""
    _passes: dict[int, float] = field(default_factory=dict)
    """Seconds of a pass that drafts one token of each sequence, by the number of these."""

    def observe(self, times: PassTime) -> float:
        """Learn from the times of a step. Return their sum."""
        if times.catch_up_tokens:
            seconds = times.catch_up_seconds / times.catch_up_tokens
            known = self.catch_up_seconds or seconds
            self.catch_up_seconds = known + _WEIGHT * (min(seconds, _MOST * known) - known)
        for num_seqs, seconds in times.passes:
            known = self._passes.get(num_seqs, seconds)
            self._passes[num_seqs] = known + _WEIGHT * (min(seconds, _MOST * known) - known)
        return times.catch_up_seconds + sum(seconds for _, seconds in times.passes)

    def relax(self) -> None:
        """Forget a little: the draft model does not draft, because it seems to cost too much."""
        self.catch_up_seconds *= _REST
        for num_seqs in self._passes:
            self._passes[num_seqs] *= _REST

    def seconds(self, num_seqs: int) -> float:
        """Seconds of a pass of these sequences: of as many, or of the next fewer that ran."""
        known = [n for n in self._passes if n <= num_seqs]
        return self._passes[max(known)] if known else 0.0


def _size(number: int) -> int:
    """Return the smallest of `_SIZES` that is not below the number, or the largest."""
    return _SIZES[min(bisect_left(_SIZES, number), len(_SIZES) - 1)]


def _interpolated(ratios: dict[int, _Average], num_drafts: int, slope: float) -> list[float]:
    curve = [1.0]
    for key in sorted(ratios):
        first, value = len(curve) - 1, max(curve[-1], ratios[key].value)
        slope = (value - curve[-1]) / (key - first)
        curve += [curve[first] + slope * i for i in range(1, key - first + 1)]
        slope /= 2
    num_more = num_drafts + 1 - len(curve)
    return curve + [curve[-1] + slope * i for i in range(1, num_more + 1)]
