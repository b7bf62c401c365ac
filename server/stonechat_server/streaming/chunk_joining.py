"""Joins the chunks of several steps into fewer chunks.

If a client reads slowly, or the server is behind, the deltas of many steps wait. Successive texts,
fragments of arguments and log-probabilities of a choice are then joined. Their order and the whole
answer stay the same.
"""

from msgspec import UNSET

from stonechat_server.schema.responses import ChunkChoice, DeltaBody, FunctionCallDelta


class ChunkJoiner:
    """Joins a chunk to the previous one of its choice in a batch, if both are of the same kind."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[int, ChunkChoice] = {}

    def join(self, choice: ChunkChoice) -> bool:
        """Join `choice` to the previous chunk, if possible. False means that it is a new chunk."""
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
    """Add `new` to `last` if it continues it. Otherwise change nothing and return False."""
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
