"""Reads the command line into an object of a class of options.

argparse only splits the command line. Pydantic checks the values and explains the bad ones.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from stonechat_server.options import detail
from stonechat_server.settings import Settings, load_settings
from stonechat_server.terminal.flags import CONFIG, Flag, actions_of, flags_of

T = TypeVar("T", bound=BaseModel)

MESSAGES = {
    "byte_size": "a size such as 500MB or 2GiB is expected",
    "date_": "a date such as 2026-01-31 is expected",
    "extra_forbidden": "there is no such setting",
}
"""Plainer messages for errors whose type starts with the key."""


def parse(parser: argparse.ArgumentParser, options: type[T], words: Sequence[str]) -> T:
    """Read `words` into an object of the class. Exits with a message for a bad value or file."""
    add_flags(parser, options)
    arguments = vars(parser.parse_args(words))
    try:
        return _read(options, arguments)
    except ValidationError as error:
        classes: list[type[BaseModel]] = [options, *actions_of(options).values()]
        spellings = {flag.name: flag.spelling for kind in classes for flag in flags_of(kind)}
        lines = [f"{parser.prog}: {_explain(details, spellings)}\n" for details in error.errors()]
        parser.exit(2, "".join(lines))
    except (OSError, ValueError) as error:  # the TOML file cannot be read
        parser.exit(2, f"{parser.prog}: {CONFIG.value(arguments)}: {error}\n")


def add_flags(parser: argparse.ArgumentParser, options: type[BaseModel]) -> None:
    """Add the flags in their groups, and a subparser for each action."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for flag in flags_of(options):
        title = detail(flag.field, "group")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        groups[title].add_argument(
            flag.spelling if flag.spelling.startswith("-") else flag.name, **_keywords(flag)
        )
    if actions := actions_of(options):
        subparsers = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for word, action in actions.items():
            text = action.__doc__
            add_flags(subparsers.add_parser(word, help=text, description=text), action)


def _keywords(flag: Flag) -> dict[str, Any]:
    text = flag.meaning + (f" (default: {flag.default})" if flag.default else "")
    keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "default": None}
    if nargs := detail(flag.field, "nargs"):
        keywords["nargs"] = nargs
    if not flag.spelling.startswith("-"):
        optional = {} if flag.field.is_required() else {"nargs": "?"}
        return optional | keywords | {"metavar": flag.spelling}
    keywords["dest"] = flag.name
    if flag.is_switch:
        return keywords | {"action": "store_const", "const": not flag.field.default}
    if flag.kind is bool:
        return keywords | {"action": argparse.BooleanOptionalAction}
    if get_origin(flag.kind) is list:
        keywords["action"] = "append"
    return keywords | {"metavar": flag.metavar}


def _read(options: type[T], arguments: Mapping[str, Any]) -> T:
    values: dict[str, object] = {}
    settings = [flag.name for flag in flags_of(options) if flag.is_setting]
    for name, field in options.model_fields.items():
        if field.annotation is Settings:
            given = {name: arguments[name] for name in settings if arguments[name] is not None}
            config = CONFIG.value(arguments)
            values[name] = load_settings(given, Path(str(config)) if config else None)
        elif name == "action":
            values[name] = _read(actions_of(options)[arguments[name]], arguments)
        else:
            values[name] = Flag(name, field).value(arguments)
    return options(**{name: value for name, value in values.items() if value is not None})


def _explain(error: Mapping[str, Any], spellings: Mapping[str, str]) -> str:
    plain = [text for start, text in MESSAGES.items() if error["type"].startswith(start)]
    message = plain[0] if plain else str(error["msg"]).removeprefix("Value error, ")
    name = str(error["loc"][0]) if error["loc"] else ""
    return f"{spellings.get(name, name)}: {message}" if name else message
