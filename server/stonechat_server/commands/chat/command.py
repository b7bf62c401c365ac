"""Talk to a model in the terminal: a model loaded here, or one at an OpenAI-compatible URL."""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from rich.console import Console

from stonechat_server.client.http import HttpClient
from stonechat_server.commands.chat.api import ChatAnswer, ChatApi, ChatError
from stonechat_server.commands.chat.session import CommandError, Session
from stonechat_server.commands.chat.view import AnswerView
from stonechat_server.options import BaseOptions, option
from stonechat_server.settings import ENGINE_SETTINGS, Settings
from stonechat_server.terminal.flags import Only


def _request_field(text: object) -> object:
    name, separator, value = str(text).partition("=")
    if not name or not separator:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class Options(BaseOptions):
    """The options of `stonechat chat`. The settings are those of a model loaded here."""

    model: str | None = option(None, "the model to load, or to request at --url", flag="MODEL")
    url: str | None = option(None, "API root of a running server, such as http://127.0.0.1:8000/v1")
    api_key: str | None = option(None, "API key for --url", variable="OPENAI_API_KEY")
    system: str = option("", "system prompt")
    fields: list[Annotated[tuple[str, Any], BeforeValidator(_request_field)]] = option(
        (),
        "request field, such as temperature=0.2 (repeatable)",
        flag="--set",
        metavar="NAME=VALUE",
    )
    prompt: str | None = option(None, "send this message, print the answer, and exit")
    markdown: bool = option(True, "show answers as plain text")
    settings: Annotated[Settings, Only(*(name for name in ENGINE_SETTINGS if name != "model"))]


def run(options: Options) -> int:
    """Talk until the input ends. Returns 1 on an error, 130 after Ctrl-C."""
    console = Console()
    try:
        with _server(options) as (url, key, model):
            return asyncio.run(_talk(options, console, url, key, model))
    except (ChatError, _CannotLoadError, ValueError) as error:
        print(f"stonechat chat: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class _CannotLoadError(Exception):
    pass


@contextmanager
def _server(options: Options) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield the URL, the key, and the model's name; None: the first that the server lists."""
    if options.url is not None:
        yield options.url, options.api_key, options.model
        return
    from stonechat_models import AsyncEngine, EngineError
    from stonechat_server.commands.chat.own_server import own_server
    from stonechat_server.observability.access_log import configure_logging

    changes = {} if options.model is None else {"model": options.model}
    settings = options.settings.model_copy(update=changes)
    configure_logging("error", "text")
    try:
        engine = AsyncEngine.from_config(
            settings.engine_config(), lambda line: print(line, file=sys.stderr)
        )
        with own_server(engine, settings) as server:
            yield server.url, server.key, None
    except EngineError as error:
        raise _CannotLoadError(str(error)) from error


async def _talk(
    options: Options, console: Console, url: str, key: str | None, model: str | None
) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with HttpClient(url, headers) as client:
        api = ChatApi(client)
        name = model or next(iter(await api.models()), "")
        session = Session(name, options.system, dict(options.fields))
        if options.prompt is not None:
            session.ask(options.prompt)
            return 0 if await _answer(api, session, console, options.markdown) else 1
        if console.is_terminal:
            console.print(f"[bold]{name}[/]  /help lists commands, Ctrl-D leaves", highlight=False)
        await _loop(api, session, console, options.markdown)
    return 0


async def _loop(api: ChatApi, session: Session, console: Console, markdown: bool) -> None:
    _on_interrupt(asyncio.get_running_loop(), None)
    with _line_history():
        while not session.is_over:
            line = _read(console)  # may block: nothing else runs in this loop between answers
            if line is None:
                return
            if not line.strip():
                continue
            if line.startswith("/"):
                await _command(api, session, console, line)
                if not session.wants_answer:
                    continue
            else:
                session.ask(line)
            await _answer(api, session, console, markdown)


async def _command(api: ChatApi, session: Session, console: Console, line: str) -> None:
    try:
        output = session.command(line)
        if session.wants_models:
            output = "\n".join(await api.models())
    except (CommandError, ChatError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return
    if output:
        console.print(output, style="dim", highlight=False, markup=False)


async def _answer(api: ChatApi, session: Session, console: Console, markdown: bool) -> bool:
    """Request an answer, show it and add it to the session; Ctrl-C stops it. False: it failed."""
    answer: ChatAnswer | None = None
    view = AnswerView(console, markdown)
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None
    with view:
        stream = api.stream(session.model, session.messages, session.settings)
        _on_interrupt(loop, task.cancel)
        try:
            async for answer in stream:
                view.update(answer)
        except asyncio.CancelledError:
            task.uncancel()
            if answer is not None:
                answer.finish_reason = "stopped"
        except ChatError as error:
            view.__exit__()
            session.take_back()
            console.print(str(error), style="red", highlight=False, markup=False)
            return False
        finally:
            _on_interrupt(loop, None)
            await stream.aclose()
    if answer is None:
        session.take_back()
        return False
    view.finish(answer)
    session.answer(answer.text)
    return True


def _on_interrupt(loop: asyncio.AbstractEventLoop, action: Any) -> None:
    """Let Ctrl-C call `action`; None restores its default. Without signal support, do nothing."""
    import signal

    try:
        if action is None:
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        else:
            loop.add_signal_handler(signal.SIGINT, action)
    except (NotImplementedError, ValueError, RuntimeError):
        return


def _read(console: Console) -> str | None:
    """Read a line; a backslash at its end joins it with the next. None at the end of the input."""
    prompt = "> " if console.is_terminal and sys.stdin.isatty() else ""
    lines: list[str] = []
    while True:
        try:
            line = input(prompt if not lines else "… ")
        except EOFError:
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            if not prompt:
                raise
            console.print("\nCtrl-D leaves", style="dim")
            return ""
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


@contextmanager
def _line_history() -> Iterator[None]:
    """Line editing and a saved history, if readline is installed and the input is a terminal."""
    try:
        import readline
    except ImportError:
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    from platformdirs import user_state_path

    path = user_state_path("stonechat", appauthor=False) / "chat_history"
    with suppress(OSError):  # there is no history yet
        readline.read_history_file(path)
    try:
        yield
    finally:
        _write_history(path)


def _write_history(path: Path) -> None:
    import readline

    readline.set_history_length(1000)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.write_history_file(path)
    except OSError:
        return  # a read-only home folder: the history is not saved
