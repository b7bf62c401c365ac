"""Measure a server under load, or a model without a server; check the measurement, report it."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

from rich.console import Console

from stonechat_server.bench.results import BenchResult, read_json, write_json
from stonechat_server.bench.settings import BenchSettings, result_option
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.engine_protocol import EngineLike
from stonechat_server.model_settings import ENGINE_SETTINGS
from stonechat_server.options import OutputFile
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.tables import new_console


class Options(BenchSettings):
    """The options of `stonechat bench`: the settings of a run, and what to do with its result."""

    json_file: OutputFile | None = result_option(None, "write all results as JSON", flag="--json")
    html_file: OutputFile | None = result_option(
        None, "write a self-contained HTML report", flag="--html"
    )
    markdown_file: OutputFile | None = result_option(
        None, "write the tables as Markdown", flag="--markdown"
    )
    csv_file: OutputFile | None = result_option(None, "write the figures as CSV", flag="--csv")
    compare: tuple[Path, ...] = result_option(
        (), "JSON files of earlier runs to show beside this run in the report",
        metavar="JSON", nargs="+",
    )  # fmt: skip
    report_only: bool = result_option(
        False, "measure nothing; write a report of the --compare files to --html"
    )
    self_test: bool = result_option(False, "measure only the load generator")
    quiet: bool = result_option(False, "print no progress and no tables")
    settings: Annotated[Settings, Only(*(name for name in ENGINE_SETTINGS if name != "model"))]


def run(options: Options) -> int:
    """Run the command. Returns 1 if a check failed. Raises `BenchError` and `EngineError`."""
    console = new_console(quiet=options.quiet)
    if options.in_process is None and options.settings.flags:
        raise BenchError(f"{options.settings.flags[0]} is for --in-process MODEL")
    if options.self_test:
        return _self_test(console)
    earlier = [_earlier(path) for path in options.compare]
    try:
        results = earlier if options.report_only else [*earlier, _measure(options, console)]
    except ValueError as error:  # a bad file, or a bad URL
        raise BenchError(str(error)) from error
    if options.report_only and not (results and options.html_file):
        raise BenchError("--report-only needs --compare and --html")
    if options.html_file is not None:
        from stonechat_server.bench.report.page import render_report

        options.html_file.write_text(render_report(results), encoding="utf-8")
        console.print(f"report: {options.html_file}", highlight=False)
    passed = options.report_only or all(check.passed for check in results[-1].checks)
    return 0 if passed else 1


def _earlier(path: Path) -> BenchResult:
    try:
        return read_json(path.read_bytes())
    except ValueError as error:
        raise BenchError(f"{path}: {error}") from error


def _measure(options: Options, console: Console) -> BenchResult:
    from stonechat_server.bench.report.show import LiveWatcher, print_result
    from stonechat_server.bench.runner import run_bench

    engine = None if options.in_process is None else _engine(options, options.in_process)
    with LiveWatcher(console) as watcher:
        result = asyncio.run(run_bench(options, watcher, engine))
    print_result(console, result)
    _write(options, result, console)
    return result


def _engine(options: Options, model: str) -> EngineLike:
    """Load a model as `stonechat serve` would. Raises `EngineError`."""
    from stonechat_models import AsyncEngine

    config = options.settings.model_copy(update={"model": model}).engine_config()
    return AsyncEngine.from_config(config, lambda line: print(line, file=sys.stderr))


def _write(options: Options, result: BenchResult, console: Console) -> None:
    from stonechat_server.bench.report.tables import csv_text, markdown

    files = (
        (options.json_file, write_json),
        (options.markdown_file, lambda result: markdown(result).encode()),
        (options.csv_file, lambda result: csv_text(result).encode()),
    )
    for path, content in files:
        if path is not None:
            path.write_bytes(content(result))
            console.print(f"result: {path}", highlight=False)


def _self_test(console: Console) -> int:
    from stonechat_server.bench.selftest import REQUIRED_TOKENS_PER_SECOND, measure_generator

    speed = measure_generator()
    console.print(
        f"the load generator read {speed.num_tokens:,} tokens as SSE, one chunk per token: "
        f"{speed.tokens_per_second:,.0f} per second, or by its own processor time "
        f"{speed.tokens_per_core_second:,.0f} per second on one core"
    )
    return 0 if speed.tokens_per_core_second >= REQUIRED_TOKENS_PER_SECOND else 1
