"""Says in plain words what is wrong with a value, and where the value comes from."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import SecretStr

from stonechat_server.terminal.flags import CONFIG, Flag
from stonechat_server.terminal.suggest import did_you_mean

EXPECTED = {
    "byte_size": "a size such as 500MB or 2GiB",
    "date_": "a date such as 2026-01-31",
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_": "a text",
    "path_": "a path",
    "list_": "a list",
    "tuple_": "a list",
    "finite_number": "a number",
}
"""What was expected, by how the type of the error starts."""
BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def explain(error: Mapping[str, Any], flags: Sequence[Flag], arguments: Mapping[str, Any]) -> str:
    """The message for one of the errors of pydantic's `ValidationError`.

    `flags` are those of the command, and `arguments` what the command line has of them, by name.
    """
    name = str(error["loc"][0]) if error["loc"] else ""
    flag = next((flag for flag in flags if flag.name == name), None)
    if flag is None and error["type"] == "extra_forbidden":
        known = [flag.name for flag in flags if flag.is_setting]
        return f"{CONFIG.value(arguments)}: there is no setting {name}{did_you_mean(name, known)}"
    label = flag.spelling + _source(flag, arguments) if flag else name
    message = _message(error, flag)
    return f"{label}: {message}" if label else message


def _source(flag: Flag, arguments: Mapping[str, Any]) -> str:
    """Where the value comes from, if not from the command line."""
    if arguments.get(flag.name) is not None:
        return ""
    variable = f"STONECHAT_{flag.name.upper()}"
    if flag.is_setting and variable in os.environ:
        return f" (from the variable {variable})"
    file = CONFIG.value(arguments)
    return f" ({flag.name} in {file})" if flag.is_setting and file else ""


def _message(error: Mapping[str, Any], flag: Flag | None) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    given = _given(error.get("input"), flag)
    if kind == "literal_error" and flag is not None:
        choices = flag.choices
        hint = did_you_mean(str(error["input"]), choices)
        if hint and flag.has_many_choices:
            return f"there is no {error['input']}{hint}"
        return f"one of {', '.join(choices)} is expected{given}{hint}"
    if kind in BOUNDS:
        bound, words = BOUNDS[kind]
        limit = str(context[bound]).removesuffix(".0")
        return f"a value of {words} {limit} is expected{given}"
    if kind == "missing":
        return "a value is needed"
    for start, text in EXPECTED.items():
        if kind.startswith(start):
            return f"{text} is expected{given}"
    return str(error["msg"]).removeprefix("Value error, ")


def _given(value: object, flag: Flag | None) -> str:
    """What was given, as `, not VALUE`. Empty for secrets and for long values."""
    is_secret = flag is not None and SecretStr in (flag.kind, *get_args(flag.kind))
    if is_secret or not isinstance(value, str | int | float) or len(str(value)) > 60:
        return ""
    return f", not {value}" if str(value).strip() else ", not an empty text"
