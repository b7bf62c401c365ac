"""The charts of the HTML report: throughput against latency, distributions, timelines."""

from collections.abc import Callable, Sequence
from html import escape

from stonechat_server.bench.report.svg import (
    Bar,
    Series,
    line_chart,
    linear_axis,
    log_axis,
    timeline,
)
from stonechat_server.bench.results import BenchResult, LevelResult, Quantiles, RequestRecord, Slo

MAX_TIMELINE_BARS = 400


def sweep(results: Sequence[BenchResult]) -> str:
    """Throughput against the time to the first token, and against the time of a token."""
    charts = []
    slo = _slo(results)
    latencies: tuple[tuple[str, Callable[[LevelResult], float | None], float | None], ...] = (
        ("TTFT p50 (ms)", lambda level: level.ttft.p50, slo.ttft),
        ("time per output token p50 (ms)", lambda level: level.tpot.p50, slo.tpot),
    )
    for title, latency, bound in latencies:
        series = []
        for number, result in enumerate(results):
            levels = [level for level in result.levels if latency(level) is not None]
            series.append(
                Series(
                    result.label,
                    [((latency(lv) or 0.0) * 1000, lv.tokens_per_second) for lv in levels],
                    [f"{result.label}, {_point(level)}" for level in levels],
                    [f"{level.value:g}" for level in levels],
                    number,
                )
            )
        xs = [px for line in series for px, _ in line.points]
        xs += [] if bound is None else [bound * 1000]
        ys = [py for line in series for _, py in line.points]
        chart = line_chart(
            log_axis(title, xs),
            linear_axis("tokens/s", ys),
            series,
            f"tokens/s against {title}",
            None if bound is None else bound * 1000,
        )
        charts.append(_figure(chart, f"Tokens per second against {title}"))
    return (
        "<section><h2>Throughput against latency</h2><p>One dot per level; the number beside "
        "it is the number of requests in flight, or the request rate. Up and to the left is "
        "better.</p>"
        f'<div class="charts">{"".join(charts)}</div></section>'
    )


def _point(level: LevelResult) -> str:
    return (
        f"{level.name}: {level.tokens_per_second:,.1f} tokens/s, "
        f"TTFT p50 {_ms(level.ttft.p50)} ms, inter-token p50 {_ms(level.inter_token.p50)} ms"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.1f}"


def distributions(results: Sequence[BenchResult]) -> str:
    """The latencies of each level as curves of percentiles."""
    slo = _slo(results)
    measures: list[tuple[str, Callable[[LevelResult], Quantiles], float | None]] = [
        ("time to first token (ms)", lambda level: level.ttft, slo.ttft),
        ("inter-token time (ms)", lambda level: level.inter_token, None),
    ]
    if slo.tpot is not None:
        measures.append(("time per output token (ms)", lambda level: level.tpot, slo.tpot))
    if slo.e2e is not None:
        measures.append(("time to the end (ms)", lambda level: level.e2e, slo.e2e))
    blocks = []
    for key in _level_keys(results):
        charts = []
        name = ""
        for title, pick, bound in measures:
            series = []
            for number, result in enumerate(results):
                for level in result.levels:
                    if (level.kind, level.value) == key and pick(level).curve:
                        name = level.name
                        series.append(_cdf(result.label, pick(level), number))
            if series:
                charts.append(_distribution(title, series, bound, name))
        if charts:
            blocks.append(f'<h3>{escape(name)}</h3><div class="charts">{"".join(charts)}</div>')
    return f"<section><h2>Distributions</h2>{''.join(blocks)}</section>"


def _distribution(title: str, series: Sequence[Series], bound: float | None, name: str) -> str:
    in_ms = [] if bound is None else [bound * 1000]
    axis = log_axis(title, [px for line in series for px, _ in line.points] + in_ms)
    percent = linear_axis("percent of samples", [94.0])
    label = f"distribution of {title}, {name}"
    chart = line_chart(axis, percent, series, label, in_ms[0] if in_ms else None)
    return _figure(chart, title.capitalize())


def _slo(results: Sequence[BenchResult]) -> Slo:
    """The bounds that the charts show: those of the first run that has any."""
    return next((result.slo for result in results if result.slo is not None), Slo())


def _level_keys(results: Sequence[BenchResult]) -> list[tuple[str, float]]:
    return sorted({(level.kind, level.value) for result in results for level in result.levels})


def _cdf(label: str, quantiles: Quantiles, number: int) -> Series:
    points = [(value * 1000, float(percent)) for percent, value in enumerate(quantiles.curve)]
    return Series(label, points, colour=number, dots=False)


def timelines(results: Sequence[BenchResult]) -> str:
    """The requests of each level as bars over time."""
    blocks: list[str] = []
    for number, result in enumerate(results):
        for level in result.levels:
            records = [record for record in level.records if record.repeat == 0]
            first_records = sorted(records, key=lambda record: record.start)[:MAX_TIMELINE_BARS]
            title = f"{result.label}, {level.name}"
            note = (
                "" if len(first_records) == len(records) else f" (the first {len(first_records)})"
            )
            chart = timeline(
                [_bar(record) for record in first_records], number, f"timeline: {title}"
            )
            blocks.append(
                f"<details{' open' if len(blocks) == 0 else ''}><summary>{escape(title)}: "
                f"{len(records)} requests{note}</summary>{_figure(chart, '')}</details>"
            )
    return (
        "<section><h2>Timeline</h2><p>One bar per request of the first pass: pale until "
        f"its first token, solid from then on.</p>{''.join(blocks)}</section>"
    )


def _bar(record: RequestRecord) -> Bar:
    first = record.first_token if record.first_token is not None else record.end
    title = (
        f"start {record.start:.3f} s, TTFT {_ms(record.ttft)} ms, {record.completion_tokens} "
        f"tokens in {_ms(record.e2e)} ms" + (f", {record.error}" if record.error else "")
    )
    return Bar(record.start, first, record.end, title, record.error is not None)


def _figure(chart: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{chart}{text}</figure>"
