"""`truncation: "auto"`: leaves out the oldest messages of a conversation that is too long."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from stonechat_models import PromptTooLongError
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError
from stonechat_server.prompt.chat_template import TEMPLATE_ERROR
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.schema.messages import (
    DeveloperMessage,
    FunctionMessage,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call

ROOM_FRACTION = 4
"""At most one part in so many of the context is kept free for the answer."""

Prepare = Callable[[list[Message]], PreparedRequest]


def prepare_shortened(
    call: Call,
    model: ServedModel,
    prepare: Callable[[Call, ServedModel], list[PreparedRequest]],
) -> list[PreparedRequest]:
    """Prepare the conversation of a call, or its end, with an endpoint's `prepare`."""
    request = cast(ChatCompletionRequest, call.request)

    def prepare_messages(messages: list[Message]) -> PreparedRequest:
        shorter = request.model_copy(update={"messages": messages})
        (prepared,) = prepare(replace(call, request=shorter), model)
        return prepared

    max_model_len = model.engine.model.max_model_len
    limit = request.token_limit
    return [prepare_truncated(request.messages, prepare_messages, max_model_len, limit)]


def prepare_truncated(
    messages: Sequence[Message], prepare: Prepare, max_model_len: int, token_limit: int | None
) -> PreparedRequest:
    """Prepare a long end of the conversation that leaves room for the answer.

    System messages stay. A message goes together with the results of its calls, and the last
    message always stays. What is left begins with a user message if that is possible, as some
    templates refuse anything else. If no end leaves enough room, the shortest is taken.

    Raises `PromptTooLongError` if not even that fits, and what `prepare` raises. The whole
    conversation is prepared first, so what is wrong with a message is found at its own place.
    """
    turns = _turns(messages)
    room = max(1, min(token_limit or max_model_len, max_model_len // ROOM_FRACTION))
    found: dict[int, PreparedRequest] = {}
    too_long: dict[int, PromptTooLongError] = {}

    def fits(num_dropped: int) -> bool:
        dropped = {position for turn in turns[:num_dropped] for position in turn}
        kept = [message for i, message in enumerate(messages) if i not in dropped]
        try:
            prepared = prepare(kept)
        except PromptTooLongError as error:
            too_long[num_dropped] = error
            return False
        except APIError as error:
            if num_dropped == 0 or error.code != TEMPLATE_ERROR:
                raise
            return False
        found[num_dropped] = prepared
        return len(prepared.prompt_token_ids) + room <= max_model_len

    is_user = [isinstance(messages[turn[0]], UserMessage) for turn in turns]
    before_user = [num_dropped for num_dropped in range(1, len(turns)) if is_user[num_dropped]]
    others = range(before_user[-1] + 1 if before_user else 1, len(turns))
    for cuts in ([0], before_user, others):
        place = bisect_left(cuts, True, key=fits)
        if place < len(cuts):
            return found[cuts[place]]
    if found:
        return found[max(found)]
    raise too_long[max(too_long)]


def _turns(messages: Sequence[Message]) -> list[list[int]]:
    """Positions of the messages that may go, each together with the results that follow it."""
    turns: list[list[int]] = []
    for i, message in enumerate(messages):
        if isinstance(message, SystemMessage | DeveloperMessage):
            continue
        if turns and isinstance(message, ToolMessage | FunctionMessage):
            turns[-1].append(i)
        else:
            turns.append([i])
    return turns
