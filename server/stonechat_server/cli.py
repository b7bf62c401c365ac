"""The `stonechat` command. A subcommand's module is imported only when it runs."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A subcommand: the module that implements `Command`, and a summary of one line."""

    module: str
    summary: str


COMMANDS: Mapping[str, CommandEntry] = {
    "serve": CommandEntry("stonechat_server.commands.serve", "start the server"),
    "keys": CommandEntry("stonechat_server.commands.keys", "add, list and revoke API keys"),
    "usage": CommandEntry(
        "stonechat_server.commands.usage", "print the usage by key, user, model and day"
    ),
    "chat": CommandEntry("stonechat_server.commands.chat.command", "chat in the terminal"),
    "bench": CommandEntry("stonechat_server.bench.command", "measure a server under load"),
    "plan": CommandEntry(
        "stonechat_server.commands.plan", "show what serving a model needs, without loading it"
    ),
    "models": CommandEntry(
        "stonechat_server.commands.models", "list, fetch, remove and rename models"
    ),
    "doctor": CommandEntry(
        "stonechat_server.commands.doctor", "show the hardware of this machine and how it is used"
    ),
}


class Command(Protocol):
    """What a subcommand's module must define: a class of options, and what to do with them."""

    Options: "type[BaseModel]"

    def run(self, options: "BaseModel") -> int:
        """Run the command and return its exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `stonechat ARGV…` and return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        return _run_without_command(words)
    from stonechat_server.terminal.parse import parse

    command = load_command(words[0])
    parser = argparse.ArgumentParser(
        prog=f"stonechat {words[0]}", description=command.__doc__, allow_abbrev=False
    )
    return command.run(parse(parser, command.Options, words[1:]))


def load_command(name: str) -> Command:
    """Import the module of a subcommand."""
    return cast(Command, import_module(COMMANDS[name].module))


def _run_without_command(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="stonechat",
        description="A local inference server for the OpenAI-style chat completions endpoint.",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:<10} {entry.summary}" for name, entry in COMMANDS.items()]
            + ["", "`stonechat COMMAND --help` shows the options of a command."]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), help="see below")
    if parser.parse_args(words).version:
        from stonechat_models import __version__

        print(f"stonechat {__version__}")
        return 0
    parser.print_help()
    return 2


if __name__ == "__main__":
    sys.exit(main())
