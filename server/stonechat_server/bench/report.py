"""The HTML report of one run, or of several side by side: one file without outside requests."""

from collections.abc import Callable, Sequence
from html import escape

from stonechat_server.bench.report_style import STYLE
from stonechat_server.bench.results import BenchResult, LevelResult, Quantiles, RequestRecord
from stonechat_server.bench.svg import (
    NUM_COLOURS,
    Bar,
    Series,
    line_chart,
    linear_axis,
    log_axis,
    timeline,
)

MAX_TIMELINE_BARS = 400


def render_report(results: Sequence[BenchResult]) -> str:
    """The whole page. Raises ValueError if there are no results."""
    if not results:
        raise ValueError("there are no results to report")
    sections = [
        _legend(results),
        _sweep(results),
        _figures(results),
        _distributions(results),
        _timelines(results),
        _runs(results),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmark: {escape(', '.join(r.label for r in results))}</title>"
        f"<style>{STYLE}</style></head><body><main><h1>Benchmark</h1>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _legend(results: Sequence[BenchResult]) -> str:
    items = "".join(
        f'<li><span class="swatch s{number % NUM_COLOURS}"></span>'
        f"<strong>{escape(result.label)}</strong> <small>{escape(result.model)}, "
        f"{escape(result.created_at)}</small>{_verdict(result)}</li>"
        for number, result in enumerate(results)
    )
    return f'<ul class="legend">{items}</ul>'


def _verdict(result: BenchResult) -> str:
    failed_checks = [check for check in result.checks if not check.passed]
    if not failed_checks:
        return f' <span class="good">all {len(result.checks)} checks passed</span>'
    names = "; ".join(f"{check.name} ({check.detail})" for check in failed_checks)
    return f' <span class="bad">failed: {escape(names)}</span>'


def _sweep(results: Sequence[BenchResult]) -> str:
    charts = []
    latencies: tuple[tuple[str, Callable[[LevelResult], float | None]], ...] = (
        ("TTFT p50 (ms)", lambda level: level.ttft.p50),
        ("time per output token p50 (ms)", lambda level: level.tpot.p50),
    )
    for title, latency in latencies:
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
        ys = [py for line in series for _, py in line.points]
        chart = line_chart(
            log_axis(title, xs), linear_axis("tokens/s", ys), series, f"tokens/s against {title}"
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


HEADINGS = (
    "run", "load", "requests", "errors", "tokens/s", "req/s", "goodput req/s",
    "TTFT p50", "p90", "p99", "inter-token p50", "p90", "p99", "end-to-end p50", "p90", "p99",
    "cached prompt", "of bandwidth",
)  # fmt: skip


def _figures(results: Sequence[BenchResult]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _row(result.label, level))}</tr>"
        for result in results
        for level in result.levels
    )
    return (
        "<section><h2>Figures</h2><p>Latencies in milliseconds.</p>"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _row(label: str, level: LevelResult) -> list[str]:
    num_cached = level.cached_tokens
    share = "-" if num_cached is None else f"{num_cached / max(1, level.prompt_tokens):.0%}"
    latencies = [
        _ms(value)
        for measure in (level.ttft, level.inter_token, level.e2e)
        for value in (measure.p50, measure.p90, measure.p99)
    ]
    return [
        label,
        level.name,
        str(level.num_requests),
        str(level.num_errors),
        f"{level.tokens_per_second:,.1f}",
        f"{level.requests_per_second:.2f}",
        "-" if level.goodput is None else f"{level.goodput:.2f}",
        *latencies,
        share,
        "-" if level.roofline_share is None else f"{level.roofline_share:.0%}",
    ]


def _distributions(results: Sequence[BenchResult]) -> str:
    measures: tuple[tuple[str, Callable[[LevelResult], Quantiles]], ...] = (
        ("time to first token (ms)", lambda level: level.ttft),
        ("inter-token time (ms)", lambda level: level.inter_token),
    )
    blocks = []
    for key in _level_keys(results):
        charts = []
        name = ""
        for title, pick in measures:
            series = []
            for number, result in enumerate(results):
                for level in result.levels:
                    if (level.kind, level.value) == key and pick(level).curve:
                        name = level.name
                        series.append(_cdf(result.label, pick(level), number))
            if series:
                axis = log_axis(title, [px for line in series for px, _ in line.points])
                percent = linear_axis("percent of samples", [94.0])
                chart = line_chart(axis, percent, series, f"distribution of {title}, {name}")
                charts.append(_figure(chart, title.capitalize()))
        if charts:
            blocks.append(f'<h3>{escape(name)}</h3><div class="charts">{"".join(charts)}</div>')
    return f"<section><h2>Distributions</h2>{''.join(blocks)}</section>"


def _level_keys(results: Sequence[BenchResult]) -> list[tuple[str, float]]:
    return sorted({(level.kind, level.value) for result in results for level in result.levels})


def _cdf(label: str, quantiles: Quantiles, number: int) -> Series:
    points = [(value * 1000, float(percent)) for percent, value in enumerate(quantiles.curve)]
    return Series(label, points, colour=number, dots=False)


def _timelines(results: Sequence[BenchResult]) -> str:
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


def _runs(results: Sequence[BenchResult]) -> str:
    blocks = []
    for result in results:
        facts: dict[str, object] = {
            "server": result.base_url,
            "model": result.model,
            "date": result.created_at,
            "processor": result.environment.cpu,
            "processors usable": result.environment.usable_cpus,
            "memory": f"{result.environment.memory_bytes / 2**30:.0f} GiB",
            "GPUs": ", ".join(result.environment.gpus) or "none",
            "system": result.environment.platform,
            "load generator": f"stonechat {result.environment.stonechat}, "
            f"Python {result.environment.python}",
        }
        if result.roofline is not None:
            facts["memory bandwidth"] = f"{result.roofline.bandwidth / 1e9:.1f} GB/s"
            facts["decode ceiling"] = f"{result.roofline.ceiling:,.0f} steps/s"
        facts.update({f"server: {name}": value for name, value in result.server.items()})
        facts.update({f"setting: {name}": value for name, value in result.settings.items()})
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in facts.items()
            if value is not None
        )
        checks = "".join(
            f'<li class="{"good" if check.passed else "bad"}">{escape(check.name)}: '
            f"{escape(check.detail)}</li>"
            for check in result.checks
        )
        notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
        blocks.append(
            f"<h3>{escape(result.label)}</h3><ul>{checks}{notes}</ul>"
            f'<div class="scroll"><table class="facts">{rows}</table></div>'
        )
    return f"<section><h2>Runs, checks and settings</h2>{''.join(blocks)}</section>"


def _figure(chart: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{chart}{text}</figure>"
