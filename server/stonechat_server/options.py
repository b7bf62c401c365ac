"""Declares options: fields from which flags, help texts and docs derive."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class UserError(Exception):
    """A command cannot do what it was asked for. The message tells the user why."""


class BaseOptions(BaseModel):
    """The options of a command, one field each. Values are checked when an object is made."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True
    )


def option(default: Any, description: str, *, group: str = "", flag: str = "", metavar: str = "",
           variable: str = "", nargs: str = "", **limits: Any) -> Any:  # fmt: skip
    """A field with a help text. `limits` are those of pydantic's `Field`.

    `group` is the heading in the help, `metavar` the name of the value there, `nargs` that of
    argparse. `flag` is the spelling if the name does not give it; without dashes the option is a
    positional argument. `variable` is an environment variable that applies if the flag is absent.
    """
    details = {"group": group, "flag": flag, "metavar": metavar, "variable": variable,
               "nargs": nargs}  # fmt: skip
    return Field(default, description=description, json_schema_extra={**details}, **limits)


def detail(field: FieldInfo, name: str) -> str:
    """A detail that `option` recorded; empty if there is none."""
    extra = field.json_schema_extra
    return str(extra.get(name, "")) if isinstance(extra, dict) else ""


def _writable(path: Path) -> Path:
    """Refuse a file that cannot be made, before hours of work that end in it."""
    path = path.expanduser()
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent}")
    return path


OutputFile = Annotated[Path, AfterValidator(_writable)]
"""A file to write, in a folder that is there."""


def split(value: object) -> object:
    """The parts of a comma-separated string. Other values stay as they are."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]
