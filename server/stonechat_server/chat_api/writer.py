"""Writes an answer as chat completion chunks, the events of a streamed chat completion."""

from msgspec import UNSET

from stonechat_models import LogprobEntry
from stonechat_server.parsers.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.responses import (
    ChatCompletionChunk,
    ChunkChoice,
    CustomCallDelta,
    DeltaBody,
    FunctionCallDelta,
    LogprobsBody,
    TokenLogprobBody,
    ToolCallDeltaBody,
)
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import CompletionHead, CompletionsWriter
from stonechat_server.streaming.chunk_parts import logprob_body, prompt_logprobs_body, token_id_name


class ChunkWriter(CompletionsWriter):
    """Turns pieces into chunks. `prompt_token_ids` are sent if the request asks for them."""

    chunk_type = ChatCompletionChunk

    def __init__(
        self,
        head: CompletionHead,
        reader: AnswerReader,
        request: ChatCompletionRequest,
        prompt_token_ids: list[int],
    ) -> None:
        super().__init__(head, reader, request)
        self._may_call = bool(request.tools) and request.tool_choice != "none"
        """Whether calls may replace the content. Content then begins as null, not as ""."""
        self._legacy_calls = request.functions is not None
        """Whether the only call is sent as `function_call`, the format before `tool_calls`."""
        self._num_prompt_top = request.prompt_logprobs
        """How many alternatives each token of the prompt has; None: no log-probabilities."""
        self._prompt_token_ids = prompt_token_ids if request.return_token_ids else None

    def begin(self) -> list[ChatCompletionChunk]:
        content = None if self._may_call else ""
        body = DeltaBody(role="assistant", content=content, refusal=None)
        chunks = []
        for index in range(len(self.reader.choices)):
            choice = ChunkChoice(index=index, delta=body, logprobs=None, finish_reason=None)
            chunks.append(self._chunk([choice], ""))
        self._add_prompt(chunks[0])
        return chunks

    def write(self, piece: Piece) -> list[ChatCompletionChunk]:
        delta, legacy_calls, reason = piece.delta, self._legacy_calls, piece.finish_reason
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
        return [self._chunk([choice], body.content or "")]

    def _add_prompt(self, chunk: ChatCompletionChunk) -> None:
        """Add to the first chunk what the request wants of the prompt."""
        if self._prompt_token_ids is not None:
            chunk.prompt_token_ids = self._prompt_token_ids
        entries, num_top = self.reader.prompt_logprobs.get(0), self._num_prompt_top
        if num_top is not None and entries is not None:
            chunk.prompt_logprobs = prompt_logprobs_body(entries, num_top)

    def _logprob(self, entry: LogprobEntry) -> TokenLogprobBody:
        body = logprob_body(entry)
        if self._tokens_as_ids:
            body.token = token_id_name(entry.token_id)
            for top, other in zip(body.top_logprobs, entry.top, strict=True):
                top.token = token_id_name(other.token_id)
        return body


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
