"""Translates the other names of request fields, which `schema/fields.py` lists, to their own names.

A name and its field may both be given if their values are equal. Names that set the form of the
answer stay: `structured/answer_form.py` reads them, so that errors name what the client sent.
"""

from collections.abc import Iterator

from stonechat_server.errors import invalid
from stonechat_server.schema.fields import FIELDS, OTHER_NAMES
from stonechat_server.schema.requests import ChatCompletionRequest

NO_LIMIT = -1
THINKING_VARIABLES = ("enable_thinking", "thinking")
"""The variables with which templates switch reasoning on and off."""

Setting = tuple[str, str, object]
"""The path that the client sent, the field that it stands for, and the field's value."""


def with_own_names(request: ChatCompletionRequest) -> ChatCompletionRequest:
    """Return the request with the fields set for which it has other names.

    Raises `APIError` 400 if two names of one field have different values.
    """
    values: dict[str, object] = {}
    for path, field, value in _settings(request):
        if value is None:
            continue
        known = values.get(field, getattr(request, field))
        if known is not None and known != value:
            raise invalid(path, f"'{path}' and '{field}' set the same option to different values.")
        values[field] = value
    if _is_switched_on(request):
        if values.get("reasoning_effort", request.reasoning_effort) == "none":
            raise invalid("reasoning_effort", "Reasoning is both switched on and switched off.")
        on = dict.fromkeys(THINKING_VARIABLES, True)
        values["chat_template_kwargs"] = {**on, **(request.chat_template_kwargs or {})}
    return request.model_copy(update=values)


def _settings(request: ChatCompletionRequest) -> Iterator[Setting]:
    for name, note in FIELDS.items():
        if note.alias_of and name in OTHER_NAMES:
            yield name, note.alias_of, _limit(note.alias_of, getattr(request, name))
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


def _is_switched_on(request: ChatCompletionRequest) -> bool:
    return any(is_on is True for _, is_on in _switches(request))


def _switches(request: ChatCompletionRequest) -> Iterator[tuple[str, bool | None]]:
    """The switches of reasoning by their paths. None: not set."""
    yield "enable_thinking", request.enable_thinking
    yield "think", request.think if isinstance(request.think, bool) else None
    if request.reasoning is not None:
        yield "reasoning.enabled", request.reasoning.enabled
    if request.thinking is not None:
        kinds = {"enabled": True, "disabled": False}
        yield "thinking.type", kinds.get(request.thinking.type)
