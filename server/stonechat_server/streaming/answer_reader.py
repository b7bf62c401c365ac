"""Reads the outputs of the engine: parses the text of each choice and counts its tokens.

All endpoints read alike. Their writers make events of the pieces.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from stonechat_models import CompletionDelta, FinishReason, LogprobEntry, RequestOutput
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
from stonechat_server.schema.responses import FinishReasonName


@dataclass(slots=True)
class Piece:
    """What one choice adds: a delta with its log-probabilities and token ids, or its end."""

    index: int
    delta: MessageDelta | None
    """None in the last piece of a choice."""
    logprobs: list[LogprobEntry] | None = None
    token_ids: list[int] | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: str | int | None = None
    """The stop string or the id of the stop token that ended the choice."""

    def extend(self, piece: "Piece") -> bool:
        """Append a piece of the same choice if it continues this one. Returns whether it does."""
        if self.delta is None or piece.delta is None:
            return False
        joined = join(self.delta, piece.delta)
        if joined is None:
            return False
        self.delta = joined
        if piece.logprobs:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += piece.logprobs
        if piece.token_ids:
            if self.token_ids is None:
                self.token_ids = []
            self.token_ids += piece.token_ids
        return True


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
    """The reason as the chat endpoint names it."""
    logprobs: list[LogprobEntry] | None = None
    """The log-probabilities of tokens whose text has not been sent yet."""
    token_ids: list[int] | None = None
    """The ids of tokens whose text has not been sent yet. None: not wanted."""

    def piece(self, index: int, delta: MessageDelta | None) -> Piece:
        """Make a piece with the tokens whose text has not been sent yet."""
        piece = Piece(index, delta, self.logprobs, self.token_ids)
        self.logprobs = None
        if self.token_ids is not None:
            self.token_ids = []
        return piece


@dataclass(slots=True, kw_only=True)
class TokenUsage:
    """Tokens of a whole request: each prompt counts once, completions are summed over choices."""

    num_prompt: int = 0
    num_cached: int = 0
    """Prompt tokens read from the prefix cache."""
    num_cache_written: int = 0
    num_image: int = 0
    """Prompt tokens that are places of images."""
    num_audio: int = 0
    num_video: int = 0
    num_completion: int = 0
    num_reasoning: int = 0
    num_predicted: int = 0
    """The length of the request's prediction, for each choice."""
    num_accepted: int = 0
    """Tokens of the answer that repeat the prediction."""


@dataclass(slots=True)
class AnswerReader:
    """Turns the outputs of one request into pieces.

    A request has one or more prompts, each with the same number of choices. The choices of the
    first prompt come first. `prompt_ids` are the engine's ids of the prompts.
    """

    choices: list[ChoiceState]
    prompt_ids: Sequence[str]
    num_predicted_tokens: int = 0
    media_tokens: Mapping[str, int] = field(default_factory=dict)
    """How many prompt tokens are places of media, by their `Modality`."""
    outputs: dict[str, RequestOutput] = field(default_factory=dict, init=False)
    """The latest output of each prompt, by the engine's id."""
    prompt_logprobs: dict[int, tuple[LogprobEntry | None, ...]] = field(
        default_factory=dict, init=False
    )
    """The log-probabilities of each prompt, by its index, if the request asks for them."""
    num_finished: int = field(default=0, init=False)
    """How many choices have ended, all in all."""
    ended_early: list[int] = field(default_factory=list, init=False)
    """Choices that a parser ended. The engine still runs them."""

    def take(self, output: RequestOutput) -> int:
        """Note an output. Returns the index of its prompt's first choice.

        Raises `APIError` if the engine reports a failure.
        """
        self.outputs[output.request_id] = output
        if output.error is not None:
            raise engine_failure(output.error)
        if len(self.prompt_ids) == 1:
            prompt = first = 0
        else:
            prompt = self.prompt_ids.index(output.request_id)
            first = prompt * (len(self.choices) // len(self.prompt_ids))
        if output.prompt_logprobs is not None:
            self.prompt_logprobs[prompt] = output.prompt_logprobs
        return first

    def read_joined(self, deltas: Iterable[CompletionDelta], first: int) -> list[Piece]:
        """Read deltas. Neighbouring pieces of a choice that continue each other become one."""
        pieces: list[Piece] = []
        last: dict[int, Piece] = {}
        for delta in deltas:
            for piece in self.read(delta, first):
                before = last.get(piece.index)
                if before is None or not before.extend(piece):
                    pieces.append(piece)
                    last[piece.index] = piece
        return pieces

    def read(self, delta: CompletionDelta, first: int) -> list[Piece]:
        """Parse the text of a delta, and count its tokens.

        `first` is the index of the first choice of the delta's prompt.
        """
        index, finish_reason = first + delta.index, delta.finish_reason
        choice = self.choices[index]
        if choice.finish_reason is not None:  # its parser ended it earlier
            return []
        choice.num_tokens += delta.num_tokens
        choice.num_predicted_tokens += delta.num_predicted
        if delta.logprobs is not None:
            if choice.logprobs is None:
                choice.logprobs = []
            choice.logprobs += delta.logprobs
        if choice.token_ids is not None:
            choice.token_ids += delta.token_ids
        pieces: list[Piece] = []
        if choice.parser is None:
            if delta.text:
                pieces.append(choice.piece(index, ContentDelta(delta.text)))
        else:
            if choice.parser.in_reasoning:
                choice.num_reasoning_tokens += delta.num_tokens
            for parsed in choice.parser.feed(delta.text, finish_reason is not None):
                if isinstance(parsed, EndDelta):
                    choice.piece(index, None)  # the tokens of text that is not sent
                    finish_reason = FinishReason.STOP
                    self.ended_early.append(index)
                elif _counts(parsed, finish_reason):
                    choice.has_tool_calls |= isinstance(parsed, ToolCallDelta)
                    pieces.append(choice.piece(index, parsed))
        if finish_reason is not None:
            piece = choice.piece(index, None)
            piece.finish_reason = self._end(choice, finish_reason)
            piece.stop_reason = delta.stop_reason
            pieces.append(piece)
        return pieces

    def embedding_of(self, prompt: int) -> bytes:
        """The embedding, or the score, of a prompt. Raises `APIError` 500 if there is none."""
        output = self.outputs.get(self.prompt_ids[prompt])
        if output is None or output.embedding is None:
            raise server_error()
        return output.embedding

    def usage(self) -> TokenUsage:
        """The tokens so far."""
        usage = TokenUsage(num_predicted=self.num_predicted_tokens * len(self.choices))
        usage.num_image = self.media_tokens.get("image", 0)
        usage.num_audio = self.media_tokens.get("audio", 0)
        usage.num_video = self.media_tokens.get("video", 0)
        for output in list(self.outputs.values()):  # a thread may add one
            usage.num_prompt += output.num_prompt_tokens
            usage.num_cached += output.num_cached_tokens
            usage.num_cache_written += output.num_cache_written_tokens
        for choice in self.choices:
            usage.num_completion += choice.num_tokens
            usage.num_reasoning += choice.num_reasoning_tokens
            usage.num_accepted += choice.num_predicted_tokens
        return usage

    def _end(self, choice: ChoiceState, finish_reason: FinishReason) -> FinishReasonName:
        reason: FinishReasonName
        match finish_reason:
            case FinishReason.STOP:
                is_cut = choice.parser is not None and choice.parser.is_call_cut
                reason = "tool_calls" if choice.has_tool_calls and not is_cut else "stop"
            case FinishReason.LENGTH:
                reason = "length"
            case FinishReason.ABORT:
                raise APIError(503, "The server is stopping.", type="server_error", code="aborted")
            case FinishReason.ERROR:
                raise server_error()
        choice.finish_reason, choice.finish_reason_name = finish_reason, reason
        self.num_finished += 1
        return reason


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
