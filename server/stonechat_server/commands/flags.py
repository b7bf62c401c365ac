"""Command-line flags made from the fields of `Settings`."""

import argparse
import os
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from stonechat_server.settings import Settings, load_settings

CONFIG_VARIABLE = "STONECHAT_CONFIG"


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, `MODEL`, and a flag for each other setting, in groups."""
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get(CONFIG_VARIABLE),
        metavar="FILE",
        help=f"TOML file with settings (environment: {CONFIG_VARIABLE})",
    )
    groups: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        title = group_of(field)
        group = (
            groups.setdefault(title, parser.add_argument_group(title))
            if (title not in groups)
            else groups[title]
        )
        group.add_argument(*_names(name), **_keywords(name, field))


def read_settings(arguments: argparse.Namespace, parser_name: str) -> Settings:
    """Settings from parsed flags. Raises `SystemExit` with a message for a bad value or file."""
    flag_values = {
        name: value
        for name, value in vars(arguments).items()
        if name in Settings.model_fields and value is not None
    }
    config = Path(arguments.config) if arguments.config else None
    try:
        return load_settings(flag_values, config)
    except ValidationError as error:
        lines = [f"  {flag(str(e['loc'][0]))}: {e['msg']}" for e in error.errors()]
        raise SystemExit("\n".join([f"{parser_name}: bad settings", *lines])) from error
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser_name}: {config}: {error}") from error


def flag(name: str) -> str:
    """The flag of a setting, or `MODEL`, which is a positional argument."""
    return "MODEL" if name == "model" else "--" + name.replace("_", "-")


def group_of(field: FieldInfo) -> str:
    """The heading under which a setting is listed."""
    extra = field.json_schema_extra
    assert isinstance(extra, dict)
    return str(extra["group"])


def default_text(field: FieldInfo) -> str:
    """The default as the help shows it; empty if there is none."""
    if field.default in (None, ()):
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    return str(field.default)


def _names(name: str) -> list[str]:
    return [name] if name == "model" else [flag(name)]


def _keywords(name: str, field: FieldInfo) -> dict[str, Any]:
    default = default_text(field)
    help_text = f"{field.description}" + (f" (default: {default})" if default else "")
    keywords: dict[str, Any] = {"help": help_text.replace("%", "%%"), "default": None}
    kind = _plain_type(field.annotation)
    if name == "model":
        return keywords | {"nargs": "?", "metavar": "MODEL"}
    if kind is bool:
        return keywords | {"action": argparse.BooleanOptionalAction}
    keywords |= {"dest": name, "metavar": name.rpartition("_")[2].upper()}
    if get_origin(kind) is list:
        return keywords | {"action": "append"}
    if get_origin(kind) is Literal:
        return keywords | {
            "choices": get_args(kind),
            "metavar": "{" + ",".join(get_args(kind)) + "}",
        }
    return keywords


def _plain_type(annotation: Any) -> Any:
    """The type without `None`: `int` for `int | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(member for member in get_args(annotation) if member is not type(None))
    return annotation
