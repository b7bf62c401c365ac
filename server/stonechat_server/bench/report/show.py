"""The output in the terminal: live progress, and tables at the end."""

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
from stonechat_server.bench.levels import Watcher
from stonechat_server.bench.report.tables import (
    latency_rows,
    perplexity_rows,
    rate_rows,
    speed_rows,
)
from stonechat_server.bench.report.verdict import verdict
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord
from stonechat_server.terminal.tables import new_table


class LiveWatcher(Watcher):
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
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def level_started(self, name: str, num_requests: int | None) -> None:
        self._progress.start()  # not before: an error before the first level stands alone
        self._tokens = self._errors = 0
        self._task = self._progress.add_task(name, total=num_requests, speed="")

    def request_done(self, record: RequestRecord) -> None:
        self._tokens += record.completion_tokens or record.prompt_tokens
        self._errors += record.error is not None
        speed = f"{self._tokens / max(record.end, 1e-9):,.0f} tokens/s"
        errors = f", {self._errors} errors" if self._errors else ""
        self._progress.update(self._task, advance=1, speed=speed + errors)

    def level_finished(self, level: LevelResult) -> None:
        self._progress.update(self._task, speed=f"{level.tokens_per_second:,.0f} tokens/s")


def table_of(rows: list[list[str]]) -> Table:
    """A table of headings and rows. A first cell like the one above it is left out."""
    table = new_table(rows[0])
    above = None
    for first, *rest in rows[1:]:
        table.add_row("" if first == above else first, *rest)
        above = first
    return table


def print_result(console: Console, result: BenchResult) -> None:
    """Print the tables, the roofline, the checks, the notes and a few errors."""
    where = "in this process" if result.in_process else f"at {result.base_url}"
    console.print(f"[bold]{escape(result.label)}[/] {where}", highlight=False)
    if result.perplexity is not None:
        console.print(table_of(perplexity_rows(result)))
    if result.speeds:
        console.print(table_of(speed_rows(result)))
    if result.levels:
        console.print(table_of(rate_rows(result)))
        console.print(table_of(latency_rows(result)))
    for line in verdict(result):
        console.print(line, highlight=False, markup=False)
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
