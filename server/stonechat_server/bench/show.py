"""The output in the terminal: live progress, and tables at the end."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from stonechat_models import size_text
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord
from stonechat_server.terminal.tables import new_table


class LiveWatcher:
    """A progress line per level: requests done, throughput so far, errors."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            console=console,
        )
        self._tokens = 0
        self._errors = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def level_started(self, name: str, num_requests: int) -> None:
        self._tokens = self._errors = 0
        self._task = self._progress.add_task(name, total=num_requests, speed="")

    def request_done(self, record: RequestRecord) -> None:
        self._tokens += record.completion_tokens
        self._errors += record.error is not None
        speed = f"{self._tokens / max(record.end, 1e-9):,.0f} tokens/s"
        errors = f", {self._errors} errors" if self._errors else ""
        self._progress.update(self._task, advance=1, speed=speed + errors)

    def level_finished(self, level: LevelResult) -> None:
        self._progress.update(self._task, speed=f"{level.tokens_per_second:,.0f} tokens/s")


def milliseconds(seconds: float | None) -> str:
    """A latency in milliseconds with about three digits; `-` for None."""
    if seconds is None:
        return "-"
    value = seconds * 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def rates_table(result: BenchResult) -> Table:
    """Rates and errors, one line per level."""
    headings = ["load", "tokens/s", "requests/s", "errors"]
    has_slo = any(level.goodput is not None for level in result.levels)
    if has_slo:
        headings.append("goodput/s")
    if result.roofline is not None:
        headings.append("of bandwidth")
    table = new_table(headings)
    for level in result.levels:
        cells = [
            level.name,
            f"{level.tokens_per_second:,.1f}",
            f"{level.requests_per_second:.2f}",
            str(level.num_errors),
        ]
        if has_slo:
            cells.append("-" if level.goodput is None else f"{level.goodput:.2f}")
        if result.roofline is not None:
            share = level.roofline_share
            cells.append("-" if share is None else f"{share:.0%}")
        table.add_row(*cells)
    return table


def latency_table(result: BenchResult) -> Table:
    """Latencies in milliseconds, one line per level: first token, between tokens, end to end."""
    measures = ("TTFT", "ITL", "E2E")
    quantiles = [text for name in measures for text in (f"{name}\np50", "\np90", "\np99")]
    table = new_table(["\nms", *quantiles])
    table.collapse_padding = True
    for level in result.levels:
        cells = [
            milliseconds(value)
            for measure in (level.ttft, level.inter_token, level.e2e)
            for value in (measure.p50, measure.p90, measure.p99)
        ]
        table.add_row(level.name, *cells)
    return table


def print_result(console: Console, result: BenchResult) -> None:
    """Print the tables, the roofline, the checks, the notes and a few errors."""
    console.print(f"[bold]{escape(result.label)}[/] at {result.base_url}", highlight=False)
    console.print(rates_table(result))
    console.print(latency_table(result))
    if result.roofline is not None:
        roofline = result.roofline
        console.print(
            f"memory reads at {roofline.bandwidth / 1e9:.1f} GB/s; weights of "
            f"{size_text(roofline.weight_bytes)} ({roofline.source}): at most "
            f"{roofline.ceiling:,.0f} decode steps per second"
        )
    for check in result.checks:
        mark = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        console.print(f"{mark} {check.name}: {check.detail}", highlight=False)
    for note in result.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    _print_errors(console, result)


def _print_errors(console: Console, result: BenchResult) -> None:
    errors = {r.error for level in result.levels for r in level.records if r.error is not None}
    for error in sorted(errors)[:5]:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
