"""The `stonechat` command. A subcommand's module is imported only when it runs."""

import os
import signal
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from pydantic import BaseModel


COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("commands.serve", "start the server"),
    "run": ("commands.run", "chat with a model loaded here"),
    "chat": ("commands.chat.command", "chat with a running server, or a model here"),
    "keys": ("commands.keys", "add, list and revoke API keys"),
    "usage": ("commands.usage", "print requests and tokens by key, user and day"),
    "batch": ("commands.batch", "run a file of requests here, without a server"),
    "bench": ("bench.command", "measure a server under load, or a model without a server"),
    "check": ("scorecard.command", "check which fields a chat endpoint honours"),
    "plan": ("commands.plan", "show what serving a model needs, without loading it"),
    "models": ("commands.models", "list, download, delete and name models"),
    "doctor": ("commands.doctor", "show the hardware of this machine and how it is used"),
    "ray": ("commands.ray", "serve with several engines, by Ray Serve"),
}
"""The subcommands: the module of each, which is a `Command`, and a summary of one line."""


class Command(Protocol):
    """What a subcommand's module must define: a class of options, and what to do with them."""

    Options: "type[BaseModel]"

    def run(self, options: "BaseModel") -> int:
        """Run the command and return its exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `stonechat ARGV…` and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] not in COMMANDS:
        return _run_without_command(words)
    with _ctrl_c_ends_at_once():
        command, options = _read(words[0], words[1:])
    try:
        return command.run(options)
    except KeyboardInterrupt:
        print(f"stonechat {words[0]}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(words[0], reason)
    except Exception as error:
        from stonechat_models import EngineError
        from stonechat_server.options import UserError

        if not isinstance(error, UserError | EngineError):
            raise
        return _fail(words[0], str(error))


def _fail(name: str, reason: str) -> int:
    print(f"stonechat {name}: {reason}", file=sys.stderr)
    return 1


@contextmanager
def _ctrl_c_ends_at_once() -> Generator[None]:
    """Let Ctrl-C end the process without a traceback: imports take time, and nothing runs yet."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler:  # such as nohup's, which ignores it
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _read(name: str, words: Sequence[str]) -> "tuple[Command, BaseModel]":
    """The module of a subcommand, and the options that the words give it."""
    from stonechat_server.terminal.parse import parse
    from stonechat_server.terminal.parser import Parser
    from stonechat_server.terminal.quiet import quiet_libraries

    command = load_command(name)
    options = parse(Parser(f"stonechat {name}", command.__doc__), command.Options, words)
    quiet_libraries()
    return command, options


def load_command(name: str) -> Command:
    """Import the module of a subcommand."""
    return cast(Command, import_module(f"stonechat_server.{COMMANDS[name][0]}"))


def _run_without_command(words: list[str]) -> int:
    first = next(iter(words), "")
    if first in ("-V", "--version"):
        from stonechat_models import __version__

        print(f"stonechat {__version__}")
        return 0
    if first in ("", "-h", "--help"):
        print(_help())
        return 0 if first else 2
    print(f"stonechat: {_unknown(first)}\n`stonechat --help` lists the commands.", file=sys.stderr)
    return 2


def _help() -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: stonechat COMMAND [--flag …]",
            "",
            "Runs language models on this machine: a server with an OpenAI-compatible API and a "
            "page,",
            "and a chat in the terminal.",
            "",
            "commands:",
            *lines,
            "",
            "`stonechat COMMAND --help` shows the flags of a command, `stonechat --version` the "
            "version.",
            "To begin: `stonechat run` chats with a small model here, `stonechat serve` serves it.",
        ]
    )


def _unknown(word: str) -> str:
    """What is wrong with a first word that is no command."""
    from stonechat_server.terminal.suggest import did_you_mean

    if word.startswith("-"):
        return f"a command is expected before {word}"
    if "/" in word or word.endswith(".gguf"):
        return f"there is no command {word}; did you mean `stonechat run {word}`?"
    return f"there is no command {word}{did_you_mean(word, COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
