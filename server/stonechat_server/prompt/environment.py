"""What chat templates find in their sandbox.

They find what Hugging Face's have: `raise_exception`, `strftime_now`, the `tojson` filter,
`break`/`continue`, and the `generation` tag (which renders its body). `dict` and `namespace` give
no way to the interpreter's own attributes.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace


class TemplateRefusalError(Exception):
    """The template called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text. It renders as its body."""

    tags = {"generation"}  # noqa: RUF012 (an attribute that jinja2 defines)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SafeNamespace(Namespace):
    """A `namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may pass a value named `self`
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class SafeDict:
    """The `dict` of templates: a constructor and `fromkeys`, not the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dict with the given keys and one value for all."""
        return dict.fromkeys(*args)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter. Unlike jinja2's own it leaves HTML characters as they are."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_as_list,
    )


def _as_list(value: object) -> list[Any]:
    """What a filter such as `map` returns, as the list that it stands for."""
    if not isinstance(value, Iterator):
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return list(value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"A namespace cannot have the name {name!r}.")


def raise_exception(message: str) -> NoReturn:
    """Refuse the messages."""
    raise TemplateRefusalError(message)


def strftime_now(format: str) -> str:
    """Return the local time."""
    return datetime.now().strftime(format)
