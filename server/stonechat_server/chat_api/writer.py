"""Writes an answer as chat completion chunks, the events of a streamed chat completion."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import UNSET

from stonechat_models import LogprobEntry
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.schema.responses import (
    ChatCompletionChunk,
    ChunkChoice,
    CustomCallDelta,
    DeltaBody,
    FunctionCallDelta,
    LogprobsBody,
    TokenLogprobBody,
    ToolCallDeltaBody,
    Usage,
)
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead
from stonechat_server.streaming.chunk_parts import (
    logprob_body,
    obfuscation,
    prompt_logprobs_body,
    token_id_name,
    usage_body,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """What the chunks contain beside deltas, and how they show calls."""

    include_usage: bool = False
    continuous_usage: bool = False
    obfuscation: bool = False
    may_call: bool = False
    """Whether calls may replace the content. Content then begins as null, not as ""."""
    legacy_calls: bool = False
    """Whether the only call is sent as `function_call`, the format before `tool_calls`."""
    tokens_as_ids: bool = False
    """Whether tokens in log-probabilities read `token_id:123`."""
    prompt_logprobs: int | None = None
    """How many alternatives each token of the prompt has; None: no log-probabilities."""
    prompt_token_ids: list[int] | None = None
    """None: not wanted."""


class ChunkWriter(AnswerWriter):
    """Turns pieces into chunks.

    Neighbouring deltas become one chunk, unless each needs its own usage or obfuscation.
    """

    def __init__(self, head: CompletionHead, reader: AnswerReader, options: ChunkOptions) -> None:
        super().__init__(head, reader)
        self._options = options
        self.joins = not (options.continuous_usage or options.obfuscation)

    def begin(self) -> list[ChatCompletionChunk]:
        content = None if self._options.may_call else ""
        body = DeltaBody(role="assistant", content=content, refusal=None)
        chunks = []
        for index in range(len(self.reader.choices)):
            choice = ChunkChoice(index=index, delta=body, logprobs=None, finish_reason=None)
            chunks.append(self._chunk([choice]))
        options = self._options
        if options.prompt_token_ids is not None or options.prompt_logprobs is not None:
            self._add_prompt(chunks[0])
        return chunks

    def write(self, piece: Piece) -> list[ChatCompletionChunk]:
        delta, legacy_calls = piece.delta, self._options.legacy_calls
        reason = piece.finish_reason
        if legacy_calls and reason == "tool_calls":
            reason = self.reader.choices[piece.index].finish_reason_name = "function_call"
        if isinstance(delta, ContentDelta):
            body = DeltaBody(content=delta.text)
        else:
            body = DeltaBody() if delta is None else _delta_body(delta, legacy_calls)
        choice = ChunkChoice(
            index=piece.index,
            delta=body,
            logprobs=None
            if piece.logprobs is None
            else LogprobsBody([self._logprob(entry) for entry in piece.logprobs]),
            finish_reason=reason,
            token_ids=UNSET if piece.token_ids is None else piece.token_ids,
        )
        return [self._chunk([choice])]

    def end(self) -> list[ChatCompletionChunk]:
        if not self._options.include_usage:
            return []
        return [self._chunk([], usage=usage_body(self.reader.usage()))]

    def _add_prompt(self, chunk: ChatCompletionChunk) -> None:
        """Add to the first chunk what the request wants of the prompt."""
        options, entries = self._options, self.reader.prompt_logprobs.get(0)
        if options.prompt_token_ids is not None:
            chunk.prompt_token_ids = options.prompt_token_ids
        if options.prompt_logprobs is not None and entries is not None:
            chunk.prompt_logprobs = prompt_logprobs_body(entries, options.prompt_logprobs)

    def _logprob(self, entry: LogprobEntry) -> TokenLogprobBody:
        body = logprob_body(entry)
        if self._options.tokens_as_ids:
            body.token = token_id_name(entry.token_id)
            for top, other in zip(body.top_logprobs, entry.top, strict=True):
                top.token = token_id_name(other.token_id)
        return body

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        head, options = self.head, self._options
        if options.continuous_usage and usage is None:
            usage = usage_body(self.reader.usage())
        has_usage = options.include_usage or options.continuous_usage
        return ChatCompletionChunk(
            id=head.id,
            created=head.created,
            model=head.model,
            system_fingerprint=head.system_fingerprint,
            service_tier=head.service_tier,
            choices=choices,
            usage=usage if has_usage else UNSET,
            obfuscation=_obfuscation(choices) if options.obfuscation else UNSET,
        )


def _delta_body(parsed: ReasoningDelta | ToolCallDelta, legacy_calls: bool) -> DeltaBody:
    if isinstance(parsed, ReasoningDelta):
        return DeltaBody(reasoning_content=parsed.text, reasoning=parsed.text)
    if legacy_calls:
        assert parsed.index == 0, "functions allow only one call"
        name = UNSET if parsed.name is None else parsed.name
        return DeltaBody(function_call=FunctionCallDelta(name=name, arguments=parsed.arguments))
    return DeltaBody(tool_calls=[_call_body(parsed)])


def _call_body(call: ToolCallDelta) -> ToolCallDeltaBody:
    name = UNSET if call.name is None else call.name
    body = ToolCallDeltaBody(index=call.index)
    if call.id is not None:
        body.id, body.type = call.id, call.type
    if call.type == "custom":
        body.custom = CustomCallDelta(name=name, input=call.arguments)
    else:
        body.function = FunctionCallDelta(name=name, arguments=call.arguments)
    return body


def _obfuscation(choices: Sequence[ChunkChoice]) -> str:
    return obfuscation(sum(len(choice.delta.content or "") for choice in choices))
