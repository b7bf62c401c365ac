"""Small SVG charts: lines over linear or logarithmic axes, and bars of a timeline.

Colours come from CSS variables of the page (`--series-0` …), so charts follow its theme.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 46
NUM_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `labels` appear when a point is hovered; `marks` stand beside the points."""

    name: str
    points: Sequence[tuple[float, float]]
    labels: Sequence[str] = ()
    marks: Sequence[str] = ()
    colour: int = 0
    dots: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale that maps values to the range from 0 (low) to 1 (high)."""

    title: str
    low: float
    high: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies between 0 (low) and 1 (high)."""
        if self.logarithmic:
            span = math.log(self.high / self.low)
            return math.log(max(value, self.low) / self.low) / span
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        return _log_ticks(self.low, self.high) if self.logarithmic else _ticks(self.low, self.high)


def linear_axis(title: str, values: Sequence[float]) -> Axis:
    """An axis from 0 to a little above the largest value."""
    return Axis(title, 0.0, max([*values, 0.0]) * 1.06 or 1.0)


def log_axis(title: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis around the positive values. It spans a factor of 2 to 10,000."""
    positive = [value for value in values if value > 0] or [1.0]
    high = max(positive) * 1.15
    low = max(min(positive) / 1.15, high / 10_000)
    return Axis(title, low, max(high, low * 2), logarithmic=True)


def line_chart(
    x: Axis, y: Axis, series: Sequence[Series], label: str, bound: float | None = None
) -> str:
    """A chart of lines with dots; `label` names it for screen readers.

    `bound` is a value of x that should not be passed: a vertical line.
    """
    parts = [_open(label, HEIGHT), _grid(x, y, HEIGHT), _bound(x, bound)]
    for line in series:
        colour = f"var(--series-{line.colour % NUM_COLOURS})"
        spots = [(_x(x, px), _y(y, py, HEIGHT)) for px, py in line.points]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in spots)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
        for number, (px, py) in enumerate(spots if line.dots else []):
            title = escape(line.labels[number]) if line.labels else escape(line.name)
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="4" fill="{colour}">'
                f"<title>{title}</title></circle>"
            )
            if line.marks:
                parts.append(
                    f'<text class="mark" x="{px + 6:.1f}" y="{py - 6:.1f}">'
                    f"{escape(line.marks[number])}</text>"
                )
    parts.append("</svg>")
    return "".join(parts)


def _bound(x: Axis, bound: float | None) -> str:
    if bound is None or not x.low <= bound <= x.high:
        return ""
    at, bottom = _x(x, bound), HEIGHT - BOTTOM
    return (
        f'<line class="bound" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="mark" x="{at - 4:.1f}" y="{bottom - 6}" text-anchor="end">SLO</text>'
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """One request on a timeline: waiting from `start` to `middle`, then answering to `end`."""

    start: float
    middle: float
    end: float
    title: str
    failed: bool = False


def timeline(bars: Sequence[Bar], colour: int, label: str) -> str:
    """A chart of requests as bars, one per row from top to bottom, over time in seconds."""
    row = max(2.0, min(10.0, 420 / max(1, len(bars))))
    height = round(TOP + BOTTOM + row * len(bars))
    x = linear_axis("seconds", [bar.end for bar in bars])
    parts = [_open(label, height), _grid(x, None, height)]
    for number, bar in enumerate(bars):
        top = TOP + number * row
        fill = "var(--bad)" if bar.failed else f"var(--series-{colour % NUM_COLOURS})"
        start, middle, end = (_x(x, value) for value in (bar.start, bar.middle, bar.end))
        parts.append(
            f"<g><title>{escape(bar.title)}</title>"
            f'<rect x="{start:.1f}" y="{top:.1f}" width="{max(0.5, middle - start):.1f}" '
            f'height="{row * 0.8:.1f}" fill="{fill}" opacity="0.35"/>'
            f'<rect x="{middle:.1f}" y="{top:.1f}" width="{max(0.5, end - middle):.1f}" '
            f'height="{row * 0.8:.1f}" fill="{fill}"/></g>'
        )
    parts.append("</svg>")
    return "".join(parts)


def format_number(value: float) -> str:
    """The label of a tick: three significant digits, or a whole number from 1000 on."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _open(label: str, height: int) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float, height: int) -> float:
    return height - BOTTOM - axis.place(value) * (height - TOP - BOTTOM)


def _grid(x: Axis, y: Axis | None, height: int) -> str:
    bottom = height - BOTTOM
    parts = []
    for tick in x.ticks():
        at = _x(x, tick)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
            f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">'
            f"{format_number(tick)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{height - 8}" text-anchor="middle">'
        f"{escape(x.title)}</text>"
    )
    if y is None:
        return "".join(parts)
    for tick in y.ticks():
        at = _y(y, tick, height)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">'
            f"{format_number(tick)}</text>"
        )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.title)}</text>'
    )
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    rough_step = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda size: abs(size - rough_step))
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 4:
            return ticks
    return ticks
