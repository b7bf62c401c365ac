"""Chunks of several steps as fewer: what one choice said in a row goes out together.

A client that reads slowly, or a server that is behind, has the news of many steps waiting. Their
texts, fragments of arguments and log-probabilities are then joined, which changes neither their
order nor what they come to.
"""

from msgspec import UNSET

from stonechat_server.schema.responses import ChunkChoice, DeltaBody, FunctionCallDelta


class ChunkJoiner:
    """Joins chunks of one batch, each to the last one of its choice where both are of one kind."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[int, ChunkChoice] = {}

    def join(self, choice: ChunkChoice) -> bool:
        """Add `choice` to the one before it, and return whether it was: else it is a new chunk."""
        last = self._last.get(choice.index)
        is_plain = choice.finish_reason is None and choice.delta.role is UNSET
        if not is_plain:
            self._last.pop(choice.index, None)
            return False
        if last is None or not _join(last.delta, choice.delta):
            self._last[choice.index] = choice
            return False
        if last.logprobs is None:
            last.logprobs = choice.logprobs
        elif choice.logprobs is not None and choice.logprobs.content:
            last.logprobs.content = (last.logprobs.content or []) + choice.logprobs.content
        return True


def _join(last: DeltaBody, new: DeltaBody) -> bool:
    """Add to `last` what `new` carries on; False, and nothing changed, when it begins another."""
    if isinstance(new.content, str) and isinstance(last.content, str):
        last.content += new.content
        return True
    if isinstance(new.reasoning, str) and isinstance(last.reasoning, str):
        last.reasoning = last.reasoning_content = last.reasoning + new.reasoning
        return True
    if new.function_call and last.function_call:
        return _join_arguments(last.function_call, new.function_call)
    if new.tool_calls and last.tool_calls:
        before, after = last.tool_calls[0], new.tool_calls[0]
        if before.index == after.index and before.function and after.function:
            return _join_arguments(before.function, after.function)
    return False


def _join_arguments(last: FunctionCallDelta, new: FunctionCallDelta) -> bool:
    if new.name is not UNSET:
        return False
    last.arguments = (last.arguments or "") + (new.arguments or "")
    return True
