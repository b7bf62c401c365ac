"""The command-line flags of a class of options: one per field."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from stonechat_server.options import detail, option
from stonechat_server.settings import Settings

MAX_CHOICES = 10
MAX_REPEATED = 3
"""A command explains at most so many settings of `stonechat serve` again."""


class Only:
    """Names the settings that a command has flags for: `Annotated[Settings, Only("ledger")]`."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag or a positional argument, made from a field."""

    name: str
    field: FieldInfo
    is_setting: bool = False
    """The value may also come from the environment or the TOML file."""

    @property
    def spelling(self) -> str:
        """`--some-flag`, or the name of a positional argument such as `MODEL`."""
        is_off = self.is_switch and self.field.default is True
        flag = "--" + ("no-" if is_off else "") + self.name.replace("_", "-")
        return detail(self.field, "flag") or flag

    @property
    def is_optional(self) -> bool:
        """It begins with a dash; other words of a command line stand for themselves."""
        return self.spelling.startswith("-")

    @property
    def kind(self) -> Any:
        """The type without `None`: `int` for `int | None`."""
        kinds = [kind for kind in get_args(self.field.annotation) if kind is not NoneType]
        is_optional = NoneType in get_args(self.field.annotation)
        return kinds[0] if is_optional else self.field.annotation

    @property
    def is_switch(self) -> bool:
        """There is only this form of a boolean flag: it changes the default."""
        return self.field.annotation is bool and not self.is_setting

    @property
    def metavar(self) -> str:
        """The name of the value in the help; empty if the flag has no value."""
        if self.kind is bool:
            return ""
        if self.choices and not self.has_many_choices:
            return "{" + ",".join(self.choices) + "}"
        return detail(self.field, "metavar") or self._unit or self.name.rpartition("_")[2].upper()

    @property
    def _unit(self) -> str:
        """What a number counts; empty if the type does not tell it."""
        if self.kind is ByteSize:
            return "SIZE"
        if self.kind in (int, float) and "seconds" in (self.field.description or ""):
            return "SECONDS"
        return "N" if self.kind is int else ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are; empty if others are possible."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def has_many_choices(self) -> bool:
        """There are too many to stand behind the flag, so the meaning lists them."""
        return len(self.choices) > MAX_CHOICES

    @property
    def default(self) -> str:
        """The default as the help and the docs show it; empty if there is none."""
        default = self.field.default
        if self.field.is_required() or self.is_switch or default in (None, (), {}):
            return ""
        if isinstance(default, bool):
            return "on" if default else "off"
        if isinstance(default, ByteSize):
            return default.human_readable().replace(".0", "")
        if isinstance(default, tuple):
            return ",".join(map(str, default))
        return f"{default:.15g}" if isinstance(default, float) else str(default)

    @property
    def meaning(self) -> str:
        """The description, with the environment variable."""
        variable = detail(self.field, "variable")
        choices = f"; one of {', '.join(self.choices)}" if self.has_many_choices else ""
        end = f" (environment: {variable})" if variable else ""
        return f"{self.field.description}{choices}{end}"

    def value(self, arguments: Mapping[str, Any]) -> object:
        """The value of the flag, or else of its environment variable; None if there is neither."""
        value = arguments.get(self.name)
        return os.environ.get(detail(self.field, "variable")) if value is None else value


CONFIG = Flag(
    "config",
    option(
        None,
        "TOML file with settings; variables STONECHAT_<SETTING> beat it",
        metavar="FILE",
        variable="STONECHAT_CONFIG",
    ),
)


def flags_of(options: type[BaseModel]) -> Iterator[Flag]:
    """Yield the flags of the class, without those of its actions. The table `models` has none."""
    for name, field in options.model_fields.items():
        if field.annotation is Settings:
            chosen = next((mark.names for mark in field.metadata if isinstance(mark, Only)), None)
            yield CONFIG
            yield from (Flag(n, f, True) for n, f in Settings.model_fields.items()
                        if n != "models" and (chosen is None or n in chosen))  # fmt: skip
        elif name != "action":
            yield Flag(name, field)


def settings_of_serve(options: type[BaseModel]) -> list[Flag]:
    """The flags that a command only names, since the help of `stonechat serve` explains them."""
    field = options.model_fields.get("settings")
    if field is None or not any(isinstance(mark, Only) for mark in field.metadata):
        return []
    flags = [flag for flag in flags_of(options) if flag.is_setting]
    return flags if len(flags) > MAX_REPEATED else []


def by_headings(named: Sequence[Flag]) -> Iterator[str]:
    """Yield settings as a help names them: a heading of `serve` for all below it, else flags."""
    groups: dict[str, list[Flag]] = {}
    for name, field in Settings.model_fields.items():
        if (flag := Flag(name, field, is_setting=True)).is_optional:
            groups.setdefault(detail(field, "group"), []).append(flag)
    for heading, flags in groups.items():
        found = [flag.spelling for flag in flags if flag in named]
        yield from [f"*{heading}*"] if len(found) == len(flags) else found


def actions_of(options: type[BaseModel]) -> Mapping[str, type[BaseModel]]:
    """The actions of a command such as `keys add`, by name: the classes in its field `action`."""
    field = options.model_fields.get("action")
    return {kind.__name__.lower(): kind for kind in get_args(field.annotation)} if field else {}
