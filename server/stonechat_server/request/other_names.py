"""Translates the other names of request fields, which `schema/fields.py` lists, to their own names.

A name and its field may both be given if their values are equal. Names that set the form of the
answer stay: `structured/answer_form.py` reads them, so that errors name what the client sent.
"""

from collections.abc import Iterator
from typing import TypeVar

from stonechat_server.errors import invalid
from stonechat_server.schema.fields import FIELDS, OTHER_NAMES
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields

NO_LIMIT = -1
THINKING_VARIABLES = ("enable_thinking", "thinking")
"""The variables with which templates switch reasoning on and off."""

R = TypeVar("R", bound=SamplingFields)
Setting = tuple[str, str, object]
"""The path that the client sent, the field that it stands for, and the field's value."""


def with_own_names(request: R) -> R:
    """Return the request with the fields set for which it has other names.

    Raises `APIError` 400 if two names of one field have different values.
    """
    values: dict[str, object] = {}
    paths: dict[str, str] = {}
    for path, field, value in _settings(request):
        if value is None:
            continue
        known = values.get(field, getattr(request, field))
        if known is not None and known != value:
            raise invalid(path, f"'{path}' and '{field}' set the same option to different values.")
        values[field], paths[field] = value, path
    if isinstance(request, ChatCompletionRequest) and (switch := _switch_on(request)):
        if values.get("reasoning_effort", request.reasoning_effort) == "none":
            off = paths.get("reasoning_effort", "reasoning_effort")
            raise invalid(off, f"'{off}' switches reasoning off, and '{switch}' switches it on.")
        on = dict.fromkeys(THINKING_VARIABLES, True)
        values["chat_template_kwargs"] = {**on, **(request.chat_template_kwargs or {})}
    return request.model_copy(update=values)


def given_names(request: SamplingFields) -> list[tuple[str, str]]:
    """Pairs of a field and the path that the client set it by, for errors that name the field."""
    return [
        (field, path)
        for path, field, value in _settings(request)
        if value is not None and getattr(request, field) is None
    ]


def _settings(request: SamplingFields) -> Iterator[Setting]:
    for name in sorted(OTHER_NAMES & request.model_fields_set):
        if field := FIELDS[name].alias_of:
            yield name, field, _limit(field, getattr(request, name))
    if isinstance(request, ChatCompletionRequest):
        yield from _reasoning_settings(request)


def _reasoning_settings(request: ChatCompletionRequest) -> Iterator[Setting]:
    for path, is_on in _switches(request):
        yield path, "reasoning_effort", "none" if is_on is False else None
    if isinstance(request.think, str):
        yield "think", "reasoning_effort", request.think
    if request.reasoning is not None:
        yield "reasoning.effort", "reasoning_effort", request.reasoning.effort
        yield "reasoning.max_tokens", "thinking_budget", request.reasoning.max_tokens
    if request.thinking is not None:
        budget = _limit("thinking_budget", request.thinking.budget_tokens)
        yield "thinking.budget_tokens", "thinking_budget", budget


def _limit(field: str, value: object) -> object:
    """`thinking_budget` has no value for "no limit", unlike its other names."""
    return None if field == "thinking_budget" and value == NO_LIMIT else value


def _switch_on(request: ChatCompletionRequest) -> str | None:
    """The path of a switch that is on."""
    return next((path for path, is_on in _switches(request) if is_on is True), None)


def _switches(request: ChatCompletionRequest) -> Iterator[tuple[str, bool | None]]:
    """The switches of reasoning by their paths. None: not set."""
    yield "enable_thinking", request.enable_thinking
    yield "think", request.think if isinstance(request.think, bool) else None
    if request.reasoning is not None:
        yield "reasoning.enabled", request.reasoning.enabled
    if request.thinking is not None:
        kinds = {"enabled": True, "disabled": False}
        yield "thinking.type", kinds.get(request.thinking.type)
