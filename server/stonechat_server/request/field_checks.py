"""Finds the fields of a request that are refused or have no effect, with the table `FIELDS`."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.schema.fields import FIELDS, FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest


def check_supported(request: ChatCompletionRequest) -> None:
    """Raise `APIError` 400 for a field that asks for something that is not supported."""
    for name in request.model_fields_set & FIELDS.keys():
        note = FIELDS[name]
        if note.status is FieldStatus.REJECTED and _asks_for_something(
            getattr(request, name), note.neutral
        ):
            detail = f" ({note.note})" if note.note else ""
            raise unsupported(name, f"'{name}' is not supported here{detail}.")
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true.")


def check_unknown(request: ChatCompletionRequest) -> None:
    """Raise `APIError` 400 for the first unknown field. Called only with `strict_params`."""
    for name in unknown_params(request):
        raise APIError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def ignored_params(request: ChatCompletionRequest) -> list[str]:
    """Names of fields that are set but change nothing: unknown fields, and those of the table."""
    without_effect = (
        name
        for name, note in FIELDS.items()
        if note.status is FieldStatus.NO_EFFECT
        and _asks_for_something(getattr(request, name), note.neutral)
    )
    return [*unknown_params(request), *without_effect]


def unknown_params(request: ChatCompletionRequest) -> list[str]:
    """Names of unknown fields of the request and of its `stream_options`.

    Unknown keys of messages do not count, because the chat template sees them.
    """
    return [*_unknown(request, ""), *_unknown(request.stream_options, "stream_options.")]


def _unknown(model: BaseModel | None, prefix: str) -> Iterator[str]:
    extra: dict[str, Any] = (model.model_extra if model else None) or {}
    return (prefix + name for name in extra)


def _asks_for_something(value: object, neutral: tuple[object, ...]) -> bool:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True, by_alias=True)
    return value is not None and all(value != other for other in neutral)
