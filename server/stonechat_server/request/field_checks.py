"""Finds the fields of a request that are refused or have no effect, with the table `FIELDS`."""

from pydantic import BaseModel

from stonechat_server.errors import APIError, invalid, unsupported
from stonechat_server.schema.fields import FIELDS, FieldStatus
from stonechat_server.schema.requests import ChatCompletionRequest

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
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "stream_options is only allowed when stream is true.")


def check_unknown(request: ChatCompletionRequest) -> None:
    """Raise `APIError` 400 for the first unknown field. Called only with `strict_params`."""
    for name in unknown_params(request):
        raise APIError(400, f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")


def ignored_params(request: ChatCompletionRequest) -> list[str]:
    """Names of fields that are set but change nothing: unknown fields, and those of the table."""
    names = unknown_params(request)
    for name in FIELDS_WITHOUT_EFFECT:
        if name in request.model_fields_set and _asks_for_something(
            getattr(request, name), FIELDS[name].neutral
        ):
            names.append(name)
    return names


def unknown_params(request: ChatCompletionRequest) -> list[str]:
    """Names of unknown fields of the request and of its `stream_options`.

    Unknown keys of messages do not count, because the chat template sees them.
    """
    names = list(request.model_extra or ())
    if request.stream_options is not None:
        names += [f"stream_options.{name}" for name in request.stream_options.model_extra or ()]
    return names


def _asks_for_something(value: object, neutral: tuple[object, ...]) -> bool:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True, by_alias=True)
    return value is not None and all(value != other for other in neutral)
