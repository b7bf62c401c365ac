"""The HTML report of one run, or of several side by side: one file without outside requests."""

from collections.abc import Sequence
from html import escape

from stonechat_server.bench.report.charts import distributions, sweep, timelines
from stonechat_server.bench.report.style import STYLE
from stonechat_server.bench.report.svg import NUM_COLOURS
from stonechat_server.bench.report.tables import (
    latency_rows,
    perplexity_rows,
    rate_rows,
    speed_rows,
)
from stonechat_server.bench.report.verdict import verdict
from stonechat_server.bench.results import BenchResult

SCROLL = '<div class="scroll" tabindex="0" role="group" aria-label="table">'
"""A table that is too wide scrolls, by the keyboard too."""


def render_report(results: Sequence[BenchResult]) -> str:
    """The whole page. Raises ValueError if there are no results."""
    if not results:
        raise ValueError("there are no results to report")
    has_levels = any(result.levels for result in results)
    parts = [_verdicts, *([sweep] if has_levels else []), _comparison, _perplexities, _speeds]
    parts += [_figures, distributions, timelines] if has_levels else []
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
    note = (
        "Lower is better. Compare runs on the same text, with the same tokens, context and stride "
        "only; se: standard error."
    )
    return _all_rows("Perplexity", note, [(r.label, perplexity_rows(r)) for r in results])


def _speeds(results: Sequence[BenchResult]) -> str:
    note = (
        "pp: tokens of a prompt a second, tg: generated tokens a second; mean ± standard deviation."
    )
    return _all_rows("One request at a time", note, [(r.label, speed_rows(r)) for r in results])


def _all_rows(title: str, note: str, tables: Sequence[tuple[str, list[list[str]]]]) -> str:
    """One table of the tables of all runs, which have the same headings; empty without rows."""
    rows = [[label, *row] for label, table in tables for row in table[1:]]
    if not rows:
        return ""
    table = _table([["run", *tables[0][1][0]], *rows])
    return f"<section><h2>{title}</h2><p>{note}</p>{table}</section>"


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


def _figures(results: Sequence[BenchResult]) -> str:
    """The tables of the runs, beside each other where there is room."""
    blocks = [
        f'<div class="run"><h3>{escape(result.label)}</h3>{_table(rate_rows(result))}'
        f"<h3>Latencies</h3>{_table(latency_rows(result))}</div>"
        for result in results
        if result.levels
    ]
    return f'<section><h2>Figures</h2><div class="runs">{"".join(blocks)}</div></section>'


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
