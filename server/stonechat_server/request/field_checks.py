"""Finds the fields of a request that are refused or have no effect, with the table `FIELDS`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from stonechat_server.errors import APIError, format_path, invalid, unsupported
from stonechat_server.prompt.template_messages import is_parts
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.fields import FIELDS, UNSUPPORTED_FORMS, FieldStatus
from stonechat_server.schema.messages import Message, ReasoningPart
from stonechat_server.schema.requests import ChatCompletionRequest

KeyPath = tuple[str | int, ...]
MESSAGES = get_args(get_args(Message)[0])
MAX_IGNORED = 500
"""At most this many names are collected. The header has room for fewer."""
MAX_NAME_LENGTH = 200
"""The rest of a longer path is cut off."""

REJECTED_FIELDS = frozenset(
    name for name, note in FIELDS.items() if note.status is FieldStatus.REJECTED
)
FIELDS_WITHOUT_EFFECT = tuple(
    name for name, note in FIELDS.items() if note.status is FieldStatus.NO_EFFECT
)


def check_supported(request: ChatCompletionRequest) -> None:
    """Raise `APIError` 400 for a field that asks for something that is not supported."""
    for name in request.model_fields_set & REJECTED_FIELDS:
        note = FIELDS[name]
        if _asks_for_something(getattr(request, name), note.neutral):
            detail = f" ({note.note})" if note.note else ""
            raise unsupported(name, f"'{name}' is not supported here{detail}.")
    if request.model_extra:
        _check_forms(request.model_extra)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true.")


def _check_forms(extra: dict[str, object]) -> None:
    for path in UNSUPPORTED_FORMS:
        name, _, key = path.partition(".")
        value = extra.get(name)
        if key:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            raise unsupported(
                path, f"'{path}' is not supported here; use response_format or structured_outputs."
            )


def check_unknown(request: ChatCompletionRequest) -> None:
    """Raise `APIError` 400 for the first unknown key. Called only with `strict_params`."""
    for name in unknown_params(request):
        raise APIError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def ignored_params(request: ChatCompletionRequest) -> list[str]:
    """Paths of keys that are set but change nothing: unknown ones, and fields of the table.

    At most `MAX_IGNORED` paths.
    """
    names = list(islice(unknown_params(request), MAX_IGNORED))
    return names + [
        name
        for name in FIELDS_WITHOUT_EFFECT
        if name in request.model_fields_set
        and _asks_for_something(getattr(request, name), FIELDS[name].neutral)
    ]


def unknown_params(request: ChatCompletionRequest) -> Iterator[str]:
    """Paths of the unknown keys of a request, as `tools[0].function.x`.

    A key without a value (null, an empty list) does not count. Nor do the keys of messages and of
    their calls: the chat template sees them. Those of content parts count.
    """
    has_functions = request.functions is not None or request.function_call is not None
    for path in _unknown_paths(request, ()):
        if not (has_functions and path[0] in ("tools", "tool_choice")):  # made from the functions
            yield format_path(path)[:MAX_NAME_LENGTH]


def _unknown_paths(model: WireModel, path: KeyPath) -> Iterator[KeyPath]:
    if model.model_extra:
        yield from _given(model.model_extra, path)
    given = model.model_fields_set
    for name, field in type(model).model_fields.items():
        if name not in given:
            continue
        value, where = getattr(model, name), (*path, field.alias or name)
        if isinstance(value, WireModel):
            yield from _unknown_paths(value, where)
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, MESSAGES):
                if isinstance(item.content, list):
                    yield from _unknown_in_content(item.content, (*where, i, "content"))
            elif isinstance(item, WireModel):
                yield from _unknown_paths(item, (*where, i))


def _unknown_in_content(content: list[Any], path: KeyPath) -> Iterator[KeyPath]:
    """Look into content parts. A tool's result is JSON, which may be a list of parts."""
    for i, part in enumerate(content):
        if isinstance(part, WireModel) and not isinstance(part, ReasoningPart):
            yield from _unknown_paths(part, (*path, i))
    for i, part in enumerate(content if is_parts(content) else ()):
        yield from _given(part, (*path, i), known=("type", "text"))


def _given(
    values: Mapping[str, object], path: KeyPath, known: Sequence[str] = ()
) -> Iterator[KeyPath]:
    """The keys that have a value."""
    for key, value in values.items():
        if value is not None and value != [] and key not in known:
            yield (*path, key)


def _asks_for_something(value: object, neutral: tuple[object, ...]) -> bool:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True, by_alias=True)
    return value is not None and all(value != other for other in neutral)
