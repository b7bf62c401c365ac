"""Turns the outputs of the engine into chunks, the messages of a streamed answer."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from stonechat_models import (
    CompletionDelta,
    FinishReason,
    LogprobEntry,
    RequestOutput,
    TextFollower,
)
from stonechat_server.errors import APIError, engine_failure, server_error
from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    ParsedDelta,
    ParserFactory,
    ReasoningDelta,
    ToolCallDelta,
)
from stonechat_server.schema.responses import (
    ChatCompletionChunk,
    ChunkChoice,
    CompletionTokensDetails,
    CustomCallDelta,
    DeltaBody,
    FinishReasonName,
    FunctionCallDelta,
    LogprobsBody,
    PromptTokensDetails,
    TokenLogprobBody,
    ToolCallDeltaBody,
    TopLogprobBody,
    Usage,
)
from stonechat_server.streaming.chunk_joining import ChunkJoiner

OBFUSCATION_BLOCK = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionHead:
    """The fields that are equal in all chunks of a request."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET


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


@dataclass(slots=True)
class ChoiceState:
    """The state of one choice."""

    parser: DeltaParser
    predicted: TextFollower | None = None
    """Tracks which part of the request's prediction the choice has repeated."""
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    has_tool_calls: bool = False
    finish_reason: FinishReason | None = None
    finish_reason_name: FinishReasonName | None = None
    """The reason as the client sees it."""
    logprobs: list[TokenLogprobBody] | None = None
    """The log-probabilities of tokens whose text has not been sent yet."""


@dataclass(slots=True)
class ChunkBuilder:
    """Turns the outputs of one request into chunks. `output` is the latest output."""

    head: CompletionHead
    options: ChunkOptions
    choices: list[ChoiceState]
    output: RequestOutput | None = field(default=None, init=False)

    @classmethod
    def create(
        cls,
        head: CompletionHead,
        options: ChunkOptions,
        n: int,
        new_parser: ParserFactory,
        prediction: Sequence[int] = (),
    ) -> "ChunkBuilder":
        """Create a builder for `n` choices."""
        choices = [ChoiceState(new_parser()) for _ in range(n)]
        if prediction:
            followers = TextFollower.for_choices(prediction, n)
            for choice, follower in zip(choices, followers, strict=True):
                choice.predicted = follower
        return cls(head, options, choices)

    def add(self, output: RequestOutput) -> list[ChatCompletionChunk]:
        """Turn an output of one step, or of several joined steps, into chunks.

        Raises `APIError` if the engine reports a failure.
        """
        chunks: list[ChatCompletionChunk] = []
        if self.output is None:
            chunks += [self._role_chunk(index) for index in range(len(self.choices))]
        self.output = output
        if output.error is not None:
            raise engine_failure(output.error)
        joiner = ChunkJoiner() if self._may_join(output) else None
        for delta in output.deltas:
            self._add_delta(delta, chunks, joiner)
        if output.finished and self.options.include_usage:
            chunks.append(self._chunk([], usage=self.usage()))
        return chunks

    def usage(self) -> Usage:
        """The tokens so far. The prompt counts once, the completions of all choices are summed."""
        output = self.output
        num_prompt = output.num_prompt_tokens if output else 0
        num_cached = output.num_cached_tokens if output else 0
        num_written = output.num_cache_written_tokens if output else 0
        num_completion = sum(choice.num_tokens for choice in self.choices)
        num_reasoning = sum(choice.num_reasoning_tokens for choice in self.choices)
        followers = [choice.predicted for choice in self.choices if choice.predicted]
        num_predicted = sum(len(follower.text) for follower in followers)
        num_accepted = sum(len(follower.matched) for follower in followers)
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_completion,
            total_tokens=num_prompt + num_completion,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=num_cached, cache_write_tokens=num_written
            ),
            completion_tokens_details=CompletionTokensDetails(
                reasoning_tokens=num_reasoning,
                accepted_prediction_tokens=num_accepted,
                rejected_prediction_tokens=num_predicted - num_accepted,
            ),
            cache_creation_input_tokens=num_written,
            cache_read_input_tokens=num_cached,
        )

    def _may_join(self, output: RequestOutput) -> bool:
        """False if every chunk has usage or obfuscation of its own, or if there is one delta."""
        options = self.options
        return len(output.deltas) > 1 and not (options.continuous_usage or options.obfuscation)

    def _add_delta(
        self,
        delta: CompletionDelta,
        chunks: list[ChatCompletionChunk],
        joiner: ChunkJoiner | None,
    ) -> None:
        choice = self.choices[delta.index]
        finished = delta.finish_reason is not None
        choice.num_tokens += delta.num_tokens
        if choice.predicted is not None:
            for token_id in delta.token_ids:
                choice.predicted.follow(token_id)
        if choice.parser.in_reasoning:
            choice.num_reasoning_tokens += delta.num_tokens
        if delta.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + [_logprob(e) for e in delta.logprobs]
        for parsed in choice.parser.feed(delta.text, finished):
            choice.has_tool_calls |= isinstance(parsed, ToolCallDelta)
            choice_delta = self._choice(delta.index, _delta_body(parsed, self.options.legacy_calls))
            if joiner is None or not joiner.join(choice_delta):
                chunks.append(self._chunk([choice_delta]))
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            has_calls = choice.has_tool_calls and not choice.parser.is_call_cut
            reason = _finish_reason_name(delta.finish_reason, has_calls)
            if reason == "tool_calls" and self.options.legacy_calls:
                reason = "function_call"
            choice.finish_reason_name = reason
            chunks.append(self._chunk([self._choice(delta.index, DeltaBody(), reason)]))

    def _role_chunk(self, index: int) -> ChatCompletionChunk:
        content = None if self.options.may_call else ""
        body = DeltaBody(role="assistant", content=content, refusal=None)
        return self._chunk([self._choice(index, body)])

    def _choice(
        self, index: int, delta: DeltaBody, finish_reason: FinishReasonName | None = None
    ) -> ChunkChoice:
        state = self.choices[index]
        logprobs = None
        if state.logprobs is not None and delta.role is UNSET:
            logprobs, state.logprobs = LogprobsBody(state.logprobs), None
        return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)

    def _chunk(self, choices: list[ChunkChoice], usage: Usage | None = None) -> ChatCompletionChunk:
        head, options = self.head, self.options
        if options.continuous_usage and usage is None:
            usage = self.usage()
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


def _delta_body(parsed: ParsedDelta, legacy_calls: bool) -> DeltaBody:
    if isinstance(parsed, ContentDelta):
        return DeltaBody(content=parsed.text)
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


def _finish_reason_name(reason: FinishReason, has_calls: bool) -> FinishReasonName:
    match reason:
        case FinishReason.STOP:
            return "tool_calls" if has_calls else "stop"
        case FinishReason.LENGTH:
            return "length"
        case FinishReason.ABORT:
            raise APIError(503, "The server is stopping.", type="server_error", code="aborted")
        case FinishReason.ERROR:
            raise server_error()


def _logprob(entry: LogprobEntry) -> TokenLogprobBody:
    top = [TopLogprobBody(t.token, t.logprob, list(t.bytes)) for t in entry.top]
    return TokenLogprobBody(entry.token, entry.logprob, list(entry.bytes), top)


def _obfuscation(choices: Sequence[ChunkChoice]) -> str:
    """Random digits that pad the text to whole blocks, so that its length stays hidden."""
    length = sum(len(choice.delta.content or "") for choice in choices)
    return secrets.token_hex(OBFUSCATION_BLOCK)[: OBFUSCATION_BLOCK - length % OBFUSCATION_BLOCK]


ChunkStream = AsyncGenerator[list[ChatCompletionChunk], None]
"""Yields the chunks of a request: one list per output of the engine."""
