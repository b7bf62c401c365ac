"""Reads the command line into an object of a class of options.

argparse only splits the command line. Pydantic checks the values, `explain` says what is wrong.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError

from stonechat_server.options import detail
from stonechat_server.settings import Settings, load_settings
from stonechat_server.terminal.explain import explain
from stonechat_server.terminal.flags import (
    CONFIG,
    Flag,
    actions_of,
    by_headings,
    flags_of,
    settings_of_serve,
)
from stonechat_server.terminal.parser import Parser

T = TypeVar("T", bound=BaseModel)
DEFAULT_ACTION = "list"
"""The action of a command that has it, if none is named."""


def parse(parser: Parser, options: type[T], words: Sequence[str]) -> T:
    """Read `words` into an object of the class. Exits with a message for a bad value or file."""
    add_flags(parser, options)
    arguments = vars(parser.parse_args(words))
    try:
        return _read(options, arguments)
    except ValidationError as error:
        classes: list[type[BaseModel]] = [options, *actions_of(options).values()]
        flags = [flag for kind in classes for flag in flags_of(kind)]
        lines = [f"{parser.prog}: {explain(e, flags, arguments)}\n" for e in error.errors()]
        parser.exit(2, "".join(lines))
    except OSError as error:
        file = CONFIG.value(arguments)
        parser.exit(2, f"{parser.prog}: cannot read {file}: {error.strerror or error}\n")
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {CONFIG.value(arguments)} is not valid TOML: {error}\n")


def add_flags(
    parser: Parser,
    options: type[BaseModel],
    common: Iterable[Flag] = (),
    named: Sequence[Flag] = (),
) -> None:
    """Add the flags in their groups, and a subparser for each action.

    `common` are flags of the command, which may also stand after the name of an action; the help
    only names those of them that are in `named`.
    """
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    named = [*named, *(flag for flag in settings_of_serve(options) if flag.is_optional)]
    for flag in common:
        keywords = _keywords(flag, flag in named) | {"default": argparse.SUPPRESS}
        parser.add_argument(flag.spelling, **keywords)  # what stands before the action is kept
    for flag in flags_of(options):
        title = "" if flag in named else detail(flag.field, "group")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        word = flag.spelling if flag.is_optional else flag.name
        groups[title].add_argument(word, **_keywords(flag, flag in named))
    actions = actions_of(options)
    parser.usage = _usage(parser.prog, options)
    parser.epilog = _epilog(named) if named and not actions else None
    if actions:
        subparsers = parser.add_subparsers(
            dest="action",
            required=DEFAULT_ACTION not in actions,
            metavar="ACTION",
            prog=parser.prog,
        )
        shared = [flag for flag in flags_of(options) if flag.is_optional]
        for word, action in actions.items():
            own = {flag.spelling for flag in flags_of(action)}
            text = action.__doc__
            add_flags(
                subparsers.add_parser(word, help=text, description=text),
                action,
                [flag for flag in shared if flag.spelling not in own],
                named,
            )


def _epilog(named: Sequence[Flag]) -> str:
    """Name the settings that the help of `stonechat serve` explains."""
    names = "; ".join(by_headings(named)).replace("*", "")
    return f"It also takes flags of `stonechat serve`, by the headings of its help: {names}."


def _usage(prog: str, options: type[BaseModel]) -> str:
    """One line of usage: the flags are listed below it."""
    words = [prog, "[--flag …]"]
    for flag in flags_of(options):
        if not flag.is_optional:
            word = flag.spelling + (" …" if detail(flag.field, "nargs") else "")
            words.append(word if flag.field.is_required() else f"[{word}]")
    if actions := actions_of(options):
        words.append("[ACTION]" if DEFAULT_ACTION in actions else "ACTION")
    return " ".join(words)


def _keywords(flag: Flag, is_only_named: bool) -> dict[str, Any]:
    text = flag.meaning + (f" (default: {flag.default})" if flag.default else "")
    text = argparse.SUPPRESS if is_only_named else text.replace("%", "%%")
    keywords: dict[str, Any] = {"help": text, "default": None}
    if nargs := detail(flag.field, "nargs"):
        keywords["nargs"] = nargs
    if not flag.is_optional:
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
            action = arguments[name] or DEFAULT_ACTION
            values[name] = _read(actions_of(options)[action], arguments)
        else:
            values[name] = Flag(name, field).value(arguments)
    return options(**{name: value for name, value in values.items() if value is not None})
