"""Talk to a model in the terminal: a model loaded here, or one at an OpenAI-compatible URL."""

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator
from rich.console import Console

from stonechat_server.client.http import HttpClient
from stonechat_server.commands.chat.api import ChatAnswer, ChatApi, ChatError
from stonechat_server.commands.chat.line_input import LineInput
from stonechat_server.commands.chat.media import Part, media_part
from stonechat_server.commands.chat.own_server import OwnServer, own_server
from stonechat_server.commands.chat.session import CommandError, Session
from stonechat_server.commands.chat.view import AnswerView
from stonechat_server.model_settings import ENGINE_SETTINGS
from stonechat_server.options import BaseOptions, UserError, option
from stonechat_server.settings import Settings
from stonechat_server.terminal.flags import Only
from stonechat_server.terminal.suggest import did_you_mean


def _request_field(text: object) -> object:
    name, separator, value = str(text).partition("=")
    if not name or not separator:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class TalkOptions(BaseOptions):
    """What `stonechat chat` and `stonechat run` share. The settings are those of a model here."""

    system: str = option("", "system prompt", metavar="TEXT")
    fields: list[Annotated[tuple[str, Any], BeforeValidator(_request_field)]] = option(
        (),
        "request field, such as temperature=0.2 (repeatable)",
        flag="--set",
        metavar="NAME=VALUE",
    )
    prompt: str | None = option(
        None, "send this message, print the answer, and exit", metavar="TEXT"
    )
    images: list[Path] = option(
        (),
        "an image for the first message: a PNG, JPEG, WebP or GIF file (repeatable)",
        flag="--image",
        metavar="FILE",
    )
    audio: list[Path] = option(
        (), "audio for the first message: a WAV, MP3, FLAC or Ogg file (repeatable)", metavar="FILE"
    )
    markdown: bool = option(True, "show answers as plain text")
    settings: Annotated[Settings, Only(*(name for name in ENGINE_SETTINGS if name != "model"))]


class Options(TalkOptions):
    """The options of `stonechat chat`."""

    model: str | None = option(None, "the model to load, or to request at --url", flag="MODEL")
    url: str | None = option(None, "API root of a running server, such as http://127.0.0.1:8000/v1")
    api_key: str | None = option(None, "API key for --url", variable="OPENAI_API_KEY")


def run(options: Options) -> int:
    """Talk until the input ends. Returns 1 if an answer failed, 130 after Ctrl-C."""
    return talk(options, options.model, options.url, options.api_key)


def talk(
    options: TalkOptions, model: str | None, url: str | None = None, key: str | None = None
) -> int:
    """Talk to the server at `url`, or else to a model that is loaded here.

    Raises `UserError` and `EngineError`.
    """
    console = Console()
    try:
        media = [media_part(path.expanduser(), "image") for path in options.images]
        media += [media_part(path.expanduser(), "audio") for path in options.audio]
        with _server(options, model, url, key) as (server, name):
            return asyncio.run(_talk(options, console, server, name, media))
    except ValueError as error:  # a file that cannot be sent, or a bad URL
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        return 130


HUBS = ("huggingface.co/", "hf.co/")
"""Parts of a URL that names a model."""


@contextmanager
def _server(
    options: TalkOptions, model: str | None, url: str | None, key: str | None
) -> Iterator[tuple[OwnServer, str | None]]:
    """Yield the server, and the model's name there; None: the first that the server lists."""
    if url is not None:
        if options.settings.flags:
            raise ChatError(
                f"{options.settings.flags[0]} is for a model that is loaded here, not for --url"
            )
        yield OwnServer(url, key or ""), model
        return
    if model is not None and "://" in model and not any(hub in model for hub in HUBS):
        raise UserError(f"{model} is no model; did you mean `stonechat chat --url {model}`?")
    from stonechat_models import AsyncEngine
    from stonechat_server.observability.access_log import configure_logging

    changes = {} if model is None else {"model": model}
    settings = options.settings.model_copy(update=changes)
    configure_logging("error", "text")
    for field, _ in options.fields:  # told before the model loads
        Session("").check_field(field)
    engine = AsyncEngine.from_config(
        settings.engine_config(), lambda line: print(line, file=sys.stderr)
    )
    if not engine.model.generates:
        raise UserError(f"{engine.model.name} is for {engine.model.use}: it cannot chat")
    with own_server(engine, settings) as own:
        yield own, None


async def _talk(
    options: TalkOptions,
    console: Console,
    server: OwnServer,
    model: str | None,
    media: Sequence[Part] = (),
) -> int:
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    async with HttpClient(server.url, headers, unix_socket=server.unix_socket) as client:
        api = ChatApi(client)
        name = model or next(iter(await api.models()), "")
        if model is not None:
            with suppress(ChatError):  # not every server lists its models
                await api.models()
        session = Session(name, options.system, knows_all_fields=api.is_stonechat)
        for field, value in options.fields:
            if note := session.check_field(field):
                print(note, file=sys.stderr)
            session.settings[field] = value
        session.media += media
        _check_media(api, session)
        if options.prompt is not None:
            session.ask(options.prompt)
            errors = Console(stderr=True)
            return 0 if await _answer(api, session, console, options.markdown, errors) else 1
        if console.is_terminal:
            console.print(f"[bold]{name}[/]  /help lists commands, Ctrl-D leaves", highlight=False)
        await _loop(api, session, console, options.markdown)
    return 0


async def _loop(api: ChatApi, session: Session, console: Console, markdown: bool) -> None:
    _on_interrupt(asyncio.get_running_loop(), None)
    lines = LineInput(console)
    with lines.editing():
        while not session.is_over:
            line = lines.read()  # may block: nothing else runs in this loop between answers
            if line is None:
                return
            if not line.strip():
                continue
            if session.is_command(line):
                await _command(api, session, console, line)
                if not session.wants_answer:
                    continue
            else:
                session.ask(line)
            await _answer(api, session, console, markdown)


async def _command(api: ChatApi, session: Session, console: Console, line: str) -> None:
    before = session.model
    try:
        output = session.command(line)
        if session.wants_models:
            session.wants_models = False
            output = _listed(await api.models(), api.states, session.model)
        elif session.model != before:
            await _check_model(api, session, before)
        _check_media(api, session)
    except (CommandError, ChatError) as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return
    if output:
        console.print(output, style="dim", highlight=False, markup=False)


def _check_media(api: ChatApi, session: Session) -> None:
    """Forget images and audio that the model does not take. Raises `CommandError` then."""
    for (model, modality), refusal in api.refusals.items():
        if model == session.model and session.attached_of(modality):
            session.forget(modality)
            raise CommandError(refusal)


def _listed(names: Sequence[str], states: Mapping[str, str], current: str) -> str:
    """The models in lines, with their states. A star marks the one that is talked to."""
    marks = ["*" if name == current else " " for name in names]
    return "\n".join(
        f"{mark} {name}  {states.get(name, '')}".rstrip()
        for mark, name in zip(marks, names, strict=True)
    )


async def _check_model(api: ChatApi, session: Session, before: str) -> None:
    """Go back to the model before if the server does not list the new one. Raises `CommandError`.

    A server that is not one of Stonechat may have models that it does not list.
    """
    names = await api.models()
    if api.is_stonechat and session.model not in names:
        name, session.model = session.model, before
        hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
        raise CommandError(f"the server has no model {name}{hint}")


async def _answer(
    api: ChatApi, session: Session, console: Console, markdown: bool, errors: Console | None = None
) -> bool:
    """Request an answer, show it and add it to the session; Ctrl-C stops it. False: it failed.

    `errors` is where a failure is shown, by default in the conversation.
    """
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
            screen = errors or console
            screen.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
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
