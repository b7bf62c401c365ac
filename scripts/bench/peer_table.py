"""The tables of the comparison with peers: figures, ratios, goals, and shares of the peak."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from peak import Peak
from peer_models import ModelCost
from peer_rows import ROWS, Measurement

Figures = dict[str, float]
Share = Callable[[Figures, ModelCost, Peak], str]


@dataclass(frozen=True, slots=True)
class Goal:
    """At least `times` the best peer, or at most `most`; `share` is a part of the peak."""

    times: float | None = None
    most: float | None = None
    share: str = ""

    def text(self) -> str:
        parts = [f"{self.times:g}x" if self.times else "", f"≤ {self.most:g}" if self.most else ""]
        return "; ".join(filter(None, [*parts, self.share]))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a model's table: a figure of a row of loads, in a unit."""

    label: str
    row: str
    figure: str
    unit: float = 1.0
    lower_is_better: bool = False
    share: Share | None = None


def _read_share(figures: Figures, cost: ModelCost, peak: Peak) -> str:
    return f"{cost.step_bytes / (figures['token_ms'] / 1e3) / peak.bandwidth:.0%} of the bandwidth"


def _load_share(figures: Figures, cost: ModelCost, peak: Peak) -> str:
    """Operations of the answers and of their prompts."""
    answers = figures["tokens_per_second"] * (cost.token_operations + cost.head_operations)
    return _int8_shares(answers + figures["prompt_rate"] * cost.token_operations, peak)


def _prompt_share(figures: Figures, cost: ModelCost, peak: Peak) -> str:
    return _int8_shares(figures["prompt_per_second"] * cost.token_operations, peak)


def _int8_shares(operations: float, peak: Peak) -> str:
    best = sorted(peak.int8.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{operations / rate:.0%} of {name}" for name, rate in best)


LINES = (
    Line("1 request, tokens/s", "1", "tokens_per_second"),
    Line("1 request, ms a token", "1", "token_ms", 1, True, _read_share),
    Line("8 requests, tokens/s", "8", "tokens_per_second", share=_load_share),
    Line("32 requests, tokens/s", "32", "tokens_per_second", share=_load_share),
    Line("prompt of 1,000, tokens/s", "1000", "prompt_per_second", share=_prompt_share),
    Line("prompt of 3,900, tokens/s", "3900", "prompt_per_second", share=_prompt_share),
    Line("decode at 3,900 context, ms a token", "3900", "token_ms", 1, True),
    Line("start to ready, s", "start", "start_seconds", 1, True),
    Line("resident after the start, MB", "start", "start_bytes", 1e6, True),
    Line("resident after 8 at once, MB", "8", "busy_bytes", 1e6, True),
)

GOALS: dict[str, dict[str, Goal]] = {
    "135M Q4_1": {
        "1 request, tokens/s": Goal(times=1.5),
        "8 requests, tokens/s": Goal(times=2.5),
        "32 requests, tokens/s": Goal(times=4),
        "prompt of 1,000, tokens/s": Goal(times=2.2),
        "prompt of 3,900, tokens/s": Goal(times=2),
        "decode at 3,900 context, ms a token": Goal(most=8),
    },
    "1B Q4_K_M": {
        "1 request, ms a token": Goal(most=23, share="85%"),
        "8 requests, tokens/s": Goal(times=3),
        "32 requests, tokens/s": Goal(times=3, share="60%"),
        "prompt of 1,000, tokens/s": Goal(times=2, share="55%"),
        "start to ready, s": Goal(most=2),
    },
    "0.5B Q4_K_M": {
        "1 request, ms a token": Goal(most=14),
        "8 requests, tokens/s": Goal(times=3),
        "prompt of 1,000, tokens/s": Goal(times=2),
        "start to ready, s": Goal(most=2),
        "resident after the start, MB": Goal(most=750),
    },
}
"""The goals that the project set itself, on a machine that reads 33 GB/s."""


def tables(
    measurements: Sequence[Measurement], costs: dict[str, ModelCost], peak: Peak, ours: str
) -> str:
    """A Markdown table for each model, in the order of the measurements."""
    models = dict.fromkeys(m.model for m in measurements)
    return "\n\n".join(_table(m, measurements, costs[m], peak, ours) for m in models)


def _table(
    model: str, measurements: Sequence[Measurement], cost: ModelCost, peak: Peak, ours: str
) -> str:
    own = [m for m in measurements if m.model == model]
    servers = sorted(dict.fromkeys(m.server for m in own), key=lambda name: name != ours)
    head = [model, *servers, "against the best peer", "goal", "share reached"]
    rows = [head, ["---"] * len(head)]
    for line in LINES:
        values = {name: _values(own, name, line) for name in servers}
        if any(values.values()):
            rows.append([line.label, *map(_span, values.values()), *_verdict(line, values, ours)])
            rows[-1] += [_goal(model, line, cost), _share(line, own, ours, cost, peak)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _values(measurements: Sequence[Measurement], server: str, line: Line) -> list[float]:
    found = [m for m in measurements if m.server == server and m.row == line.row]
    return [m.figures[line.figure] / line.unit for m in found if line.figure in m.figures]


def _span(values: Sequence[float]) -> str:
    """The least and the largest value, or the only one."""
    ends = dict.fromkeys(map(_number, (min(values), max(values)))) if values else ()
    return " to ".join(ends)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(line: Line, values: dict[str, list[float]], ours: str) -> list[str]:
    """How many times better the median of ours is than the best median of the peers."""
    peers = [median(v) for name, v in values.items() if name != ours and v]
    if not (values.get(ours) and peers):
        return [""]
    own = median(values[ours])
    return [f"{min(peers) / own if line.lower_is_better else own / max(peers):.2f}x"]


def _goal(model: str, line: Line, cost: ModelCost) -> str:
    if model == "0.5B Q4_K_M" and line.figure == "busy_bytes":
        row = ROWS[line.row]
        cache = row.in_flight * (row.input_tokens + row.output_tokens) * cost.token_cache_bytes
        return f"≤ {(cost.file_bytes + cache) / 1e6 + 250:.0f} (file + cache + 250)"
    return GOALS.get(model, {}).get(line.label, Goal()).text()


def _share(
    line: Line, measurements: Sequence[Measurement], server: str, cost: ModelCost, peak: Peak
) -> str:
    found = [m.figures for m in measurements if m.server == server and m.row == line.row]
    if not (line.share and found):
        return ""
    return line.share({name: median(f[name] for f in found) for name in found[0]}, cost, peak)
