"""Run a file of requests on a model that is loaded here, without a server; or check the file."""

import asyncio
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from stonechat_server.model_settings import ENGINE_SETTINGS
from stonechat_server.options import BaseOptions, UserError, option
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only

if TYPE_CHECKING:
    from fastapi import FastAPI

    from stonechat_models import AsyncEngine
    from stonechat_server.access.auth import Identity
    from stonechat_server.batches_api.check import CheckedInput, InputCheck
    from stonechat_server.batches_api.results import ResultLog
    from stonechat_server.serving.services import Services

SETTINGS = (
    *(name for name in ENGINE_SETTINGS if name != "model"),
    *("served_model_name", "chat_template", "tool_format", "max_body_size", "batch_concurrency"),
)


class Run(BaseOptions):
    """Answer the requests of a file, and write the results to another file."""

    file: Path = option(..., "file with one request a line, as for /v1/batches", flag="FILE")
    output: Path | None = option(
        None,
        "file of results (default: that of FILE with the ending .results.jsonl)",
        flag="-o",
        metavar="OUT",
    )
    model: str | None = option(None, "the model, named as for `stonechat serve`", metavar="MODEL")

    def run(self, settings: Settings) -> int:
        """Returns 0 if every answer has status 200. Raises `UserError`."""
        from stonechat_models import AsyncEngine
        from stonechat_server.app import create_app
        from stonechat_server.errors import APIError

        output = self.output or self.file.with_suffix(".results.jsonl")
        if output.exists():
            raise UserError(f"{output} is there already: delete it, or name another with -o")
        _check(
            self.file, _max_bytes(settings), lambda name: name or ""
        )  # told before the model loads
        changes = {} if self.model is None else {"model": self.model}
        alone: dict[str, object] = {
            "api_key": (),
            "api_key_file": None,
            "keys_file": None,
            "models": {},
        }
        settings = settings.model_copy(update=changes | alone)
        with _only_one(_part(output)):
            engine = AsyncEngine.from_config(settings.engine_config(), _say)
            try:
                app = create_app(settings, engine)
            except APIError as error:  # the chat template does not compile
                raise UserError(error.message) from error
            return asyncio.run(_run(app, engine, self.file, output))


class Check(BaseOptions):
    """Say what is wrong with a file of requests, without a model."""

    file: Path = option(..., "file with one request a line, as for /v1/batches", flag="FILE")

    def run(self, settings: Settings) -> int:
        """Returns 0 if nothing is wrong. Raises `UserError`."""
        found = _check(self.file, _max_bytes(settings), lambda name: name or "").found
        model = found.model or "the default model"
        print(f"{self.file}: {found.num_requests} requests, for {model}. Nothing is wrong.")
        return 0


class Options(BaseOptions):
    """The options of `stonechat batch`."""

    settings: Annotated[Settings, Only(*SETTINGS)]
    action: Run | Check


def run(options: Options) -> int:
    """Run the action. Returns 1 if it fails, or if a request has failed; 130 after Ctrl-C."""
    from stonechat_server.observability.access_log import configure_logging

    configure_logging("error", "text")
    try:
        return options.action.run(options.settings)
    except KeyboardInterrupt:
        print("stonechat batch: stopped; run it again to go on", file=sys.stderr)
        return 130


def _part(output: Path) -> Path:
    """Where the results lie until all of them are there."""
    return output.with_name(output.name + ".part")


@contextmanager
def _only_one(part: Path) -> Generator[None]:
    """Keep others from writing the same results. Raises `UserError` if another does."""
    from filelock import FileLock, Timeout

    if not part.parent.is_dir():
        raise UserError(f"there is no folder {part.parent} for the results: make it")
    file = part.with_name(part.name + ".lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another `stonechat batch run` writes {part}: wait for it, or name another output "
            "with -o"
        ) from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            file.unlink(missing_ok=True)


def _max_bytes(settings: Settings) -> int:
    """The longest body of a request."""
    from stonechat_server.request.body import body_limit

    return body_limit(settings)


def _check(file: Path, max_bytes: int, model_of: "Callable[[str | None], str]") -> "InputCheck":
    """Check the input. Raises `UserError` with what is wrong."""
    from stonechat_server.batches_api.check import InputCheck

    check = InputCheck(None, model_of, max_bytes)
    found: CheckedInput = check.check(file)
    if found.problems:
        lines = [
            f"{file}:{problem.line or 1}: {problem.message} ({problem.code})"
            for problem in found.problems
        ]
        raise UserError("\n".join(["the file cannot be run:", *lines]))
    return check


async def _run(app: "FastAPI", engine: "AsyncEngine", file: Path, output: Path) -> int:
    from stonechat_server.access.auth import check_model
    from stonechat_server.access.keys import ANONYMOUS
    from stonechat_server.batches_api.results import ResultLog
    from stonechat_server.storage.files import sync_folder

    services = cast("Services", app.state.server)
    identity = services.authenticator.for_batches(ANONYMOUS.name)
    assert identity is not None
    check = _check(
        file, services.max_body_bytes, lambda name: check_model(name, services.models, identity)
    )
    part = _part(output)
    results = ResultLog(part, part)
    try:
        results.open()
    except ValueError as error:
        raise UserError(f"{error}: delete it, or name another output with -o") from error
    with closing(results):
        if not results.done <= check.ids:
            raise UserError(
                f"{part} has results of another input: delete it, or name another output with -o"
            )
        async with app.router.lifespan_context(app):
            await _answer_all(app, engine, identity, file, results, check.found.num_requests)
    part.replace(output)
    sync_folder(output.parent)
    counts = results.counts
    _say(f"{output}: {counts.num_completed} answers, {counts.num_failed} failed.")
    return 1 if counts.num_failed else 0


async def _answer_all(
    app: "FastAPI",
    engine: "AsyncEngine",
    identity: "Identity",
    file: Path,
    results: "ResultLog",
    num_requests: int,
) -> None:
    from stonechat_server.api.batch_lines import answer_line
    from stonechat_server.batches_api.lines import (
        ENVELOPE_BYTES,
        Answered,
        InputLine,
        open_requests,
    )
    from stonechat_server.batches_api.work import BatchWork

    services = cast("Services", app.state.server)
    settings = services.settings
    stopping = asyncio.Event()

    async def answer(line: InputLine) -> Answered:
        answered = await answer_line(app, line.url, bytes(line.body), identity)
        if engine.failure is not None:  # for good: to try again does not help
            stopping.set()
        return answered

    num_at_once = settings.batch_concurrency or engine.model.max_num_seqs
    progress = partial(_show_progress, results, num_requests)
    await progress()
    await BatchWork(
        lines=open_requests(file, results.done, services.max_body_bytes + ENVELOPE_BYTES),
        answer=answer,
        results=results,
        run_blocking=asyncio.to_thread,
        slots=asyncio.Semaphore(num_at_once),
        num_at_once=min(num_at_once, num_requests),
        on_results=progress,
        stopping=stopping,
    ).run()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if stopping.is_set():
        raise UserError(f"stopped: {engine.failure}. Run it again to go on")


async def _show_progress(results: "ResultLog", num_requests: int) -> None:
    """In a terminal, write over the last line; elsewhere say nothing until the end."""
    if sys.stderr.isatty():
        failed = f", {results.counts.num_failed} failed" if results.counts.num_failed else ""
        print(f"\r{len(results.done)} of {num_requests}{failed} ", end="", file=sys.stderr)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
