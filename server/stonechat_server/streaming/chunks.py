"""Turns the outputs of the engine into chunks, the messages of a streamed answer."""

import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from stonechat_models import (
    CompletionDelta,
    FinishReason,
    LogprobEntry,
    RequestOutput,
)
from stonechat_server.errors import APIError, engine_failure, server_error
from stonechat_server.parsers.deltas import (
    ContentDelta,
    DeltaParser,
    EndDelta,
    MessageDelta,
    ReasoningDelta,
    ToolCallDelta,
    join,
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

    @property
    def has_own_chunks(self) -> bool:
        """Whether each delta needs a chunk of its own, with its own usage or obfuscation."""
        return self.continuous_usage or self.obfuscation


@dataclass(slots=True)
class ChoiceState:
    """The state of one choice."""

    parser: DeltaParser | None
    """None: all text is content."""
    num_tokens: int = 0
    num_reasoning_tokens: int = 0
    num_predicted_tokens: int = 0
    has_tool_calls: bool = False
    finish_reason: FinishReason | None = None
    finish_reason_name: FinishReasonName | None = None
    """The reason as the client sees it."""
    logprobs: list[TokenLogprobBody] | None = None
    """The log-probabilities of tokens whose text has not been sent yet."""


@dataclass(slots=True)
class _Piece:
    """What one choice adds: a delta with its log-probabilities, or its end."""

    index: int
    delta: MessageDelta | None
    logprobs: list[TokenLogprobBody] | None
    finish_reason: FinishReasonName | None = None

    def extend(self, piece: "_Piece") -> bool:
        """Append a piece of the same choice if it continues this one. Returns whether it does."""
        if self.delta is None or piece.delta is None:
            return False
        joined = join(self.delta, piece.delta)
        if joined is None:
            return False
        self.delta = joined
        if piece.logprobs:
            self.logprobs = (self.logprobs or []) + piece.logprobs
        return True


@dataclass(slots=True)
class ChunkBuilder:
    """Turns the outputs of one request into chunks. `output` is the latest output."""

    head: CompletionHead
    options: ChunkOptions
    choices: list[ChoiceState]
    num_predicted_tokens: int = 0
    """The length of the request's prediction."""
    output: RequestOutput | None = field(default=None, init=False)
    num_finished: int = field(default=0, init=False)
    """How many choices have ended, all in all."""
    ended_early: list[int] = field(default_factory=list, init=False)
    """Choices that a parser ended. The engine still runs them."""

    def add(self, output: RequestOutput) -> list[ChatCompletionChunk]:
        """Turn an output of one step, or of several joined steps, into chunks.

        If the output has several deltas, neighbouring deltas of a choice become one chunk. They do
        not if every chunk has usage or obfuscation of its own. Raises `APIError` if the engine
        reports a failure.
        """
        chunks: list[ChatCompletionChunk] = []
        if self.output is None:
            chunks += [self._role_chunk(index) for index in range(len(self.choices))]
        self.output = output
        if output.error is not None:
            raise engine_failure(output.error)
        if len(output.deltas) > 1 and not self.options.has_own_chunks:
            self._add_joined(output.deltas, chunks)
        else:
            for delta in output.deltas:
                chunks += [self._piece_chunk(piece) for piece in self._read(delta)]
        is_finished = output.finished or self.num_finished == len(self.choices)
        if is_finished and self.options.include_usage:
            chunks.append(self._chunk([], usage=self.usage()))
        return chunks

    def _add_joined(
        self, deltas: Iterable[CompletionDelta], chunks: list[ChatCompletionChunk]
    ) -> None:
        pieces: list[_Piece] = []
        last: dict[int, _Piece] = {}
        for delta in deltas:
            for piece in self._read(delta):
                before = last.get(piece.index)
                if before is None or not before.extend(piece):
                    pieces.append(piece)
                    last[piece.index] = piece
        chunks += [self._piece_chunk(piece) for piece in pieces]

    def usage(self) -> Usage:
        """The tokens so far. The prompt counts once, the completions of all choices are summed."""
        output = self.output
        num_prompt = output.num_prompt_tokens if output else 0
        num_cached = output.num_cached_tokens if output else 0
        num_written = output.num_cache_written_tokens if output else 0
        num_completion = sum(choice.num_tokens for choice in self.choices)
        num_reasoning = sum(choice.num_reasoning_tokens for choice in self.choices)
        num_predicted = self.num_predicted_tokens * len(self.choices)
        num_accepted = sum(choice.num_predicted_tokens for choice in self.choices)
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

    def _read(self, delta: CompletionDelta) -> list[_Piece]:
        """Parse the text of a delta, and count its tokens."""
        choice, finish_reason = self.choices[delta.index], delta.finish_reason
        if choice.finish_reason is not None:  # its parser ended it earlier
            return []
        choice.num_tokens += delta.num_tokens
        choice.num_predicted_tokens += delta.num_predicted
        if delta.logprobs is not None:
            choice.logprobs = (choice.logprobs or []) + [_logprob(e) for e in delta.logprobs]
        pieces: list[_Piece] = []
        if choice.parser is None:
            if delta.text:
                pieces.append(_Piece(delta.index, ContentDelta(delta.text), choice.logprobs))
        else:
            if choice.parser.in_reasoning:
                choice.num_reasoning_tokens += delta.num_tokens
            for parsed in choice.parser.feed(delta.text, finish_reason is not None):
                if isinstance(parsed, EndDelta):
                    choice.logprobs, finish_reason = None, FinishReason.STOP
                    self.ended_early.append(delta.index)
                elif _counts(parsed, finish_reason):
                    choice.has_tool_calls |= isinstance(parsed, ToolCallDelta)
                    pieces.append(_Piece(delta.index, parsed, None if pieces else choice.logprobs))
        if finish_reason is not None:
            logprobs = None if pieces else choice.logprobs
            pieces.append(_Piece(delta.index, None, logprobs, self._end(choice, finish_reason)))
        if pieces:
            choice.logprobs = None
        return pieces

    def _end(self, choice: ChoiceState, finish_reason: FinishReason) -> FinishReasonName:
        has_calls = choice.has_tool_calls and not (choice.parser and choice.parser.is_call_cut)
        reason = _finish_reason_name(finish_reason, has_calls)
        if reason == "tool_calls" and self.options.legacy_calls:
            reason = "function_call"
        choice.finish_reason, choice.finish_reason_name = finish_reason, reason
        self.num_finished += 1
        return reason

    def _piece_chunk(self, piece: _Piece) -> ChatCompletionChunk:
        delta = piece.delta
        body = DeltaBody() if delta is None else _delta_body(delta, self.options.legacy_calls)
        logprobs = None if piece.logprobs is None else LogprobsBody(piece.logprobs)
        choice = ChunkChoice(
            index=piece.index, delta=body, logprobs=logprobs, finish_reason=piece.finish_reason
        )
        return self._chunk([choice])

    def _role_chunk(self, index: int) -> ChatCompletionChunk:
        content = None if self.options.may_call else ""
        body = DeltaBody(role="assistant", content=content, refusal=None)
        return self._chunk(
            [ChunkChoice(index=index, delta=body, logprobs=None, finish_reason=None)]
        )

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


def _counts(parsed: MessageDelta, finish_reason: FinishReason | None) -> bool:
    """False for the beginning of a call or a mark if a limit cut the answer there.

    What a model that is cut writes in its reasoning is no call.
    """
    is_cut = finish_reason is FinishReason.LENGTH
    match parsed:
        case ContentDelta():
            return not (is_cut and parsed.may_be_call)
        case ReasoningDelta():
            return is_cut or not parsed.only_if_cut
        case ToolCallDelta():
            return not (is_cut and parsed.unless_cut)


def _delta_body(parsed: MessageDelta, legacy_calls: bool) -> DeltaBody:
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
