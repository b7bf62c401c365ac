"""How much longer a step takes with draft tokens than without, as measured while steps run.

A step with K draft tokens is compared with the steps of as many sequences that had none shortly
before. So contexts that grow and a machine that slows down change both sides, not their ratio.
"""

from bisect import bisect_left
from dataclasses import dataclass, field

_WEIGHT = 0.15
"""Of a new measurement in a moving average."""
_MOST = 4.0
"""A measurement counts as at most this many times the average: one long pause is no cost."""
_RELAX_INTERVAL = 64
_RELAX_SHARE = 0.05
"""After this many steps without draft tokens, this share of what is known of the cost of draft
tokens is forgotten. So they are tried again at long intervals."""
_FIRST_GUESS = 0.5
"""What a draft token costs before any was measured, if a step without draft tokens costs 1 for each
of its sequences. It is tried if it promises more than that."""
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of sequences, and above 8 numbers of draft tokens, that are told apart."""


@dataclass(slots=True)
class _Ratio:
    """A moving average that begins at `value` and trusts its first measurements more."""

    value: float
    num_measured: int = 0

    def update(self, measured: float) -> None:
        weight = max(_WEIGHT, 1 / (self.num_measured + 2))
        self.value += weight * (min(measured, _MOST * self.value) - self.value)
        self.num_measured += 1


@dataclass(slots=True)
class StepCosts:
    """Times of steps that only decode, by their numbers of sequences and draft tokens."""

    _plain: dict[int, float] = field(default_factory=dict)
    """Seconds of a step without draft tokens, by its number of sequences."""
    _ratios: dict[int, dict[int, _Ratio]] = field(default_factory=dict)
    """By size, what draft tokens cost: by their number, seconds relative to a plain step."""
    _curves: dict[int, list[float]] = field(default_factory=dict)
    """The same for every number of draft tokens, until something new is measured."""
    _num_plain: int = 0

    def plain_seconds(self, num_seqs: int) -> float | None:
        """Seconds of a step of these sequences without draft tokens; None if none was measured."""
        return self._plain.get(num_seqs)

    def observe(self, num_seqs: int, num_drafts: int, seconds: float) -> None:
        """Record a step that computed one token of each sequence, and these draft tokens."""
        plain = self._plain.get(num_seqs)
        if num_drafts == 0:
            if plain is None:
                self._plain[num_seqs] = seconds
            else:
                self._plain[num_seqs] = plain + _WEIGHT * (min(seconds, _MOST * plain) - plain)
            self._num_plain += 1
            if self._num_plain % _RELAX_INTERVAL == 0:
                self._relax()
        elif plain:
            size = _size(num_seqs)
            ratios = self._ratios.setdefault(size, {})
            key = num_drafts if num_drafts <= _SIZES[5] else _size(num_drafts)
            if key not in ratios:
                ratios[key] = _Ratio(self.curve(num_seqs, key)[key])
            ratios[key].update(seconds / plain)
            self._curves.pop(size, None)

    def curve(self, num_seqs: int, num_drafts: int) -> list[float]:
        """Return what 0, 1, … `num_drafts` (or more) draft tokens cost, 1.0 being a plain step.

        Between two measured numbers of draft tokens the cost grows evenly, and so it does behind
        the largest one.
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


def _size(number: int) -> int:
    """Return the smallest of `_SIZES` that is not below the number, or the largest."""
    return _SIZES[min(bisect_left(_SIZES, number), len(_SIZES) - 1)]


def _interpolated(ratios: dict[int, _Ratio], num_drafts: int, slope: float) -> list[float]:
    curve = [1.0]
    for key in sorted(ratios):
        first, value = len(curve) - 1, max(curve[-1], ratios[key].value)
        slope = (value - curve[-1]) / (key - first)
        curve += [curve[first] + slope * i for i in range(1, key - first + 1)]
    num_more = num_drafts + 1 - len(curve)
    return curve + [curve[-1] + slope * i for i in range(1, num_more + 1)]
