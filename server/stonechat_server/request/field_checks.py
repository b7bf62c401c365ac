"""Finds the fields of a request that are refused or have no effect, with the table `FIELDS`."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from stonechat_server.errors import APIError, format_path, invalid, unsupported
from stonechat_server.prompt.template_messages import is_parts
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.fields import FIELDS, UNSUPPORTED_FORMS, FieldNote, FieldStatus
from stonechat_server.schema.messages import Message, ReasoningPart
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields

KeyPath = tuple[str | int, ...]
MESSAGES = get_args(get_args(Message)[0])
MAX_IGNORED = 500
"""At most this many names are collected. The header has room for fewer."""
MAX_NAME_LENGTH = 200
"""The rest of a longer path is cut off."""


def check_supported(request: SamplingFields, fields: Mapping[str, FieldNote] = FIELDS) -> None:
    """Raise `APIError` 400 for a field that asks for something that is not supported.

    `fields` is the table of the request's endpoint.
    """
    refuse_rejected(request, fields)
    if request.model_extra:
        _check_forms(request.model_extra)
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true.")
    if (
        isinstance(request, ChatCompletionRequest)
        and request.top_logprobs is not None
        and not request.logprobs
    ):
        raise invalid("top_logprobs", "top_logprobs needs logprobs to be true.")


def refuse_rejected(request: WireModel, fields: Mapping[str, FieldNote]) -> None:
    """Raise `APIError` 400 for the first field that the table calls rejected and that is given."""
    for name in asked_for(request, fields, FieldStatus.REJECTED):
        note = fields[name].note
        raise unsupported(name, f"'{name}' is not supported here{f' ({note})' if note else ''}.")


def asked_for(
    request: WireModel, fields: Mapping[str, FieldNote], status: FieldStatus
) -> list[str]:
    """The fields with that status whose value asks for something, in the order of the alphabet."""
    return sorted(
        name
        for name in request.model_fields_set
        if (note := fields.get(name)) is not None
        and note.status is status
        and _asks_for_something(getattr(request, name), note.neutral)
    )


def _check_forms(extra: dict[str, object]) -> None:
    for path in UNSUPPORTED_FORMS:
        name, _, key = path.partition(".")
        value = extra.get(name)
        if key:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            raise unsupported(path, f"'{path}' is not supported here; use structured_outputs.")


def check_unknown(request: WireModel) -> None:
    """Raise `APIError` 400 for the first unknown key. Called only with `strict_params`."""
    for name in unknown_params(request):
        raise APIError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def ignored_params(request: WireModel, fields: Mapping[str, FieldNote] = FIELDS) -> list[str]:
    """Paths of keys that are set but change nothing: unknown ones, and fields of the table.

    At most `MAX_IGNORED` unknown paths.
    """
    names = list(islice(unknown_params(request), MAX_IGNORED))
    return names + asked_for(request, fields, FieldStatus.NO_EFFECT)


def unknown_params(request: WireModel) -> Iterator[str]:
    """Paths of the unknown keys of a request, as `tools[0].function.x`.

    A key without a value (null, an empty list) does not count. Nor do the keys of messages and of
    their calls: the chat template sees them. Those of content parts count.
    """
    has_functions = isinstance(request, ChatCompletionRequest) and (
        request.functions is not None or request.function_call is not None
    )
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
        if not isinstance(value, list) or (value and isinstance(value[0], int | str | list)):
            continue  # token ids may be many
        for i, item in enumerate(value):
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
        if not isinstance(part, WireModel):
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
