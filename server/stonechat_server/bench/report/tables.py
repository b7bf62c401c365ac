"""The figures of a run as rows of text: for the terminal, Markdown and CSV."""

import csv
import io
import statistics

from stonechat_server.bench.report.verdict import percentile, verdict
from stonechat_server.bench.results import BenchResult, LevelResult, Quantiles

LATENCIES = {"TTFT": "ttft", "TPOT": "tpot", "ITL": "inter_token", "E2E": "e2e"}
IMAGE_LATENCIES = {
    "TTFT, new images": "ttft_new_images",
    "TTFT, cached images": "ttft_cached_images",
}
ALL_LATENCIES = {**LATENCIES, **IMAGE_LATENCIES}
CSV_POINTS = ("mean", "p50", "p90", "p99")


def milliseconds(value: float | str | None) -> str:
    """A latency in milliseconds with about three digits; `-` for None. Text stays."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    value *= 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def rate_rows(result: BenchResult) -> list[list[str]]:
    """Rates, errors and the use of the machine: the headings, then a row for each level.

    "generator" is the share of one core that the load generator used.
    """
    has_slo = any(level.goodput is not None for level in result.levels)
    has_images = any(level.num_images for level in result.levels)
    has_roofline = result.roofline is not None
    head = ["load", "requests", "errors", "tokens/s", "requests/s", "machine busy", "generator"]
    head += ["goodput/s", "met SLO"] if has_slo else []
    head += ["images/s", "tokens/image"] if has_images else []
    head += ["of bandwidth"] if has_roofline else []
    rows = [head]
    for level in result.levels:
        row = [
            level.name,
            str(level.num_requests),
            str(level.num_errors),
            _rate(level),
            f"{level.requests_per_second:.2f}",
            _share(level.machine_load),
            _share(level.generator_cpu),
        ]
        if has_slo:
            row += [
                "-" if level.goodput is None else f"{level.goodput:.2f}",
                _share(level.slo_share),
            ]
        if has_images:
            row += [f"{level.images_per_second:.2f}", _tokens_per_image(level)]
        rows.append([*row, _share(level.roofline_share)] if has_roofline else row)
    return rows


def _rate(level: LevelResult) -> str:
    """Tokens a second; with the deviation over the repeats if there are several."""
    repeats = level.repeat_tokens_per_second
    if len(repeats) < 2:
        return f"{level.tokens_per_second:,.1f}"
    return f"{level.tokens_per_second:,.1f} ± {statistics.stdev(repeats):,.1f}"


def _tokens_per_image(level: LevelResult) -> str:
    if level.image_tokens is None or not level.num_images:
        return "-"
    return f"{level.image_tokens / level.num_images:.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def latency_rows(result: BenchResult) -> list[list[str]]:
    """Latencies in milliseconds: the headings, then a row for each level and latency."""
    rows = [["load", "ms", "mean ± sd", "p50", "p90", "p99", "max"]]
    for level in result.levels:
        for name, field in ALL_LATENCIES.items():
            values: Quantiles = getattr(level, field)
            if name in IMAGE_LATENCIES and not values.count:
                continue
            cells = [percentile(values, p) for p in ("p50", "p90", "p99", "max")]
            rows.append([level.name, name, _spread(values), *map(milliseconds, cells)])
    return rows


def _spread(values: Quantiles) -> str:
    if values.mean is None:
        return "-"
    if values.deviation is None:
        return milliseconds(values.mean)
    return f"{milliseconds(values.mean)} ± {milliseconds(values.deviation)}"


def speed_rows(result: BenchResult) -> list[list[str]]:
    """The table of speeds: the headings, then a row for each length."""
    rows = [["test", "repeats", "tokens/s"]]
    for speed in result.speeds:
        spread = f"{speed.mean:,.2f} ± {speed.deviation:,.2f}"
        rows.append([speed.name, str(len(speed.tokens_per_second)), spread])
    return rows


def perplexity_rows(result: BenchResult) -> list[list[str]]:
    """The table of the perplexity: the headings, and its row if there is one."""
    rows = [["text", "tokens", "counted", "context", "stride", "mean loss", "perplexity ± se"]]
    if (found := result.perplexity) is not None:
        counts = [found.num_tokens, found.num_counted, found.context, found.stride]
        spread = f"{found.value:,.4f} ± {found.error:,.4f}"
        rows.append([found.text, *(f"{n:,}" for n in counts), f"{found.mean_loss:.5f}", spread])
    return rows


def markdown(result: BenchResult) -> str:
    """The verdict and all tables, to paste."""
    machine = result.environment
    parts = [
        f"**{result.label}** ({result.model_name}), {result.created_at}, {machine.cpu}, "
        f"{machine.usable_cpus} cores",
        "\n".join(f"- {line}" for line in verdict(result)),
    ]
    if result.perplexity is not None:
        parts.append(_markdown_table(perplexity_rows(result)))
    if result.speeds:
        parts.append(_markdown_table(speed_rows(result)))
    if result.levels:
        parts += [_markdown_table(rate_rows(result)), _markdown_table(latency_rows(result))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(rows: list[list[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def csv_text(result: BenchResult) -> str:
    """One line for each level, speed or perplexity, in plain numbers: seconds, tokens a second.

    `deviation` is that of the tokens a second over the repeats, or a perplexity's standard error.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{field}_{p}" for field in ALL_LATENCIES.values() for p in CSV_POINTS]
    names += ["images_per_second", "image_tokens"]
    head = ["label", "kind", "value", "requests", "errors", "tokens_per_second", "deviation"]
    writer.writerow([*head, "perplexity", "requests_per_second", *names])
    if (found := result.perplexity) is not None:
        row = [result.label, "perplexity", found.text, "", "", "", found.error, found.value, ""]
        writer.writerow([*row, *([""] * len(names))])
    for speed in result.speeds:
        row = [result.label, "speed", speed.name, len(speed.tokens_per_second), 0]
        writer.writerow([*row, speed.mean, speed.deviation, "", "", *([""] * len(names))])
    for level in result.levels:
        writer.writerow(_csv_row(result.label, level))
    return out.getvalue()


def _csv_row(label: str, level: LevelResult) -> list[object]:
    values = [
        "" if (value := percentile(getattr(level, field), p)) is None or isinstance(value, str)
        else value
        for field in ALL_LATENCIES.values()
        for p in CSV_POINTS
    ]  # fmt: skip
    images = [level.images_per_second, level.image_tokens] if level.num_images else ["", ""]
    row = [label, level.kind, f"{level.value:g}", level.num_requests, level.num_errors]
    repeats = level.repeat_tokens_per_second
    deviation = statistics.stdev(repeats) if len(repeats) > 1 else ""
    row += [level.tokens_per_second, deviation, "", level.requests_per_second]
    return [*row, *values, *images]
