"""The HTML report of one run, or of several side by side: one file without outside requests."""

from collections.abc import Callable, Sequence
from html import escape

from stonechat_server.bench.report_style import STYLE
from stonechat_server.bench.results import (
    BenchResult,
    LevelResult,
    Quantiles,
    RequestRecord,
    Slo,
)
from stonechat_server.bench.svg import (
    NUM_COLOURS,
    Bar,
    Series,
    line_chart,
    linear_axis,
    log_axis,
    timeline,
)
from stonechat_server.bench.tables import latency_rows, perplexity_rows, rate_rows, speed_rows
from stonechat_server.bench.verdict import verdict

MAX_TIMELINE_BARS = 400
SCROLL = '<div class="scroll" tabindex="0" role="group" aria-label="table">'
"""A table that is too wide scrolls, by the keyboard too."""


def render_report(results: Sequence[BenchResult]) -> str:
    """The whole page. Raises ValueError if there are no results."""
    if not results:
        raise ValueError("there are no results to report")
    has_levels = any(result.levels for result in results)
    parts = [_verdicts, *([_sweep] if has_levels else []), _comparison, _perplexities, _speeds]
    parts += [_figures, _distributions, _timelines] if has_levels else []
    sections = [part(results) for part in (*parts, _runs)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Benchmark: {escape(', '.join(r.label for r in results))}</title>"
        f"<style>{STYLE}</style></head><body><main><h1>Benchmark</h1>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _verdicts(results: Sequence[BenchResult]) -> str:
    blocks = []
    for number, result in enumerate(results):
        lines = "".join(f"<li>{escape(line)}</li>" for line in verdict(result))
        blocks.append(
            f'<div class="run"><h2><span class="swatch s{number % NUM_COLOURS}"></span>'
            f"{escape(result.label)}</h2>"
            f"<p>{escape(result.model_name)}, {escape(result.created_at[:10])}. "
            f'{_checks_passed(result)}</p><ul class="verdict">{lines}</ul></div>'
        )
    return f'<section class="runs">{"".join(blocks)}</section>'


def _checks_passed(result: BenchResult) -> str:
    if not result.checks:
        return ""
    num_failed = sum(not check.passed for check in result.checks)
    if not num_failed:
        return f'<span class="good">All {len(result.checks)} checks passed.</span>'
    return f'<span class="bad">{num_failed} of {len(result.checks)} checks failed.</span>'


def _perplexities(results: Sequence[BenchResult]) -> str:
    rows = [[result.label, *row] for result in results for row in perplexity_rows(result)[1:]]
    if not rows:
        return ""
    head = ["run", *perplexity_rows(results[0])[0]]
    return (
        "<section><h2>Perplexity</h2><p>Lower is better. Compare runs on the same text, with the "
        "same tokens, context and stride only; se: standard error.</p>"
        f"{_table([head, *rows])}</section>"
    )


def _speeds(results: Sequence[BenchResult]) -> str:
    rows = [[result.label, *row] for result in results for row in speed_rows(result)[1:]]
    if not rows:
        return ""
    head = ["run", *speed_rows(results[0])[0]]
    return (
        "<section><h2>One request at a time</h2><p>pp: tokens of a prompt a second, tg: generated "
        f"tokens a second; mean ± standard deviation.</p>{_table([head, *rows])}</section>"
    )


def _comparison(results: Sequence[BenchResult]) -> str:
    """Ratios of the later runs to the first one, where they have levels or speeds in common."""
    if len(results) < 2:
        return ""
    first, *others = results
    rows = [["measure", *(f"{other.label} / {first.label}" for other in others)]]
    for name, value in _comparable(first).items():
        ratios = [_comparable(other).get(name, 0.0) / value if value else 0.0 for other in others]
        if any(ratios):
            rows.append([name, *(f"{ratio:.2f}" if ratio else "-" for ratio in ratios)])
    if len(rows) == 1:
        return ""
    return (
        "<section><h2>Compared</h2><p>Ratios of the runs. For tokens a second, above 1 is better; "
        f"for times and perplexities, below 1 is.</p>{_table(rows)}</section>"
    )


def _comparable(result: BenchResult) -> dict[str, float]:
    values = {f"{speed.name}, tokens/s": speed.mean for speed in result.speeds}
    if (found := result.perplexity) is not None:
        values[f"perplexity on {found.text}, {found.num_counted:,} tokens"] = found.value
    for level in result.levels:
        values[f"{level.name}, tokens/s"] = level.tokens_per_second
        values[f"{level.name}, TTFT p50"] = level.ttft.p50 or 0.0
        values[f"{level.name}, TPOT p50"] = level.tpot.p50 or 0.0
    return values


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return f"{SCROLL}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _sweep(results: Sequence[BenchResult]) -> str:
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


def _figures(results: Sequence[BenchResult]) -> str:
    """The tables of the runs, beside each other where there is room."""
    blocks = [
        f'<div class="run"><h3>{escape(result.label)}</h3>{_table(rate_rows(result))}'
        f"<h3>Latencies</h3>{_table(latency_rows(result))}</div>"
        for result in results
        if result.levels
    ]
    return f'<section><h2>Figures</h2><div class="runs">{"".join(blocks)}</div></section>'


def _distributions(results: Sequence[BenchResult]) -> str:
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
            f'{SCROLL}<table class="facts">{rows}</table></div>'
        )
    return f"<section><h2>Runs, checks and settings</h2>{''.join(blocks)}</section>"


def _figure(chart: str, caption: str) -> str:
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{chart}{text}</figure>"
