"""Makes a plain chat completion of the chunks of its stream."""

from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from stonechat_server.schema.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CustomCallBody,
    FinishReasonName,
    FunctionCallBody,
    FunctionCallDelta,
    LogprobsBody,
    MessageBody,
    TokenLogprobBody,
    ToolCallBody,
    ToolCallDeltaBody,
    Usage,
)
from stonechat_server.streaming.answer_writer import CompletionHead


@dataclass(slots=True)
class _Call:
    id: str = ""
    type: str = "function"
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, delta: ToolCallDeltaBody) -> None:
        if delta.id is not UNSET:
            self.id = delta.id
        if delta.type is not UNSET:
            self.type = delta.type
        if delta.function is not UNSET:
            self.add_fragment(delta.function)
        if delta.custom is not UNSET:
            self.name = delta.custom.name or self.name
            self.arguments.append(delta.custom.input or "")

    def add_fragment(self, delta: FunctionCallDelta) -> None:
        self.name = delta.name or self.name
        self.arguments.append(delta.arguments or "")

    def function_body(self) -> FunctionCallBody:
        return FunctionCallBody(self.name, "".join(self.arguments))

    def body(self) -> ToolCallBody:
        text = "".join(self.arguments)
        if self.type == "custom":
            return ToolCallBody(id=self.id, type="custom", custom=CustomCallBody(self.name, text))
        return ToolCallBody(id=self.id, type="function", function=self.function_body())


@dataclass(slots=True)
class _CollectedChoice:
    content: list[str] = field(default_factory=list)
    may_call: bool = False
    """Whether the stream began with null as its content."""
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)
    function_call: _Call | None = None
    logprobs: list[TokenLogprobBody] | None = None
    finish_reason: FinishReasonName | None = None
    token_ids: list[int] | UnsetType = UNSET

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        self.may_call |= delta.content is None
        if delta.content:
            self.content.append(delta.content)
        if delta.reasoning_content:
            self.reasoning.append(delta.reasoning_content)
        for call in delta.tool_calls or ():
            self.calls.setdefault(call.index, _Call()).add(call)
        if delta.function_call:
            self.function_call = self.function_call or _Call()
            self.function_call.add_fragment(delta.function_call)
        if choice.logprobs is not None and choice.logprobs.content is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += choice.logprobs.content
        if choice.token_ids is not UNSET:
            if self.token_ids is UNSET:
                self.token_ids = []
            self.token_ids += choice.token_ids
        self.finish_reason = choice.finish_reason or self.finish_reason

    def body(self, index: int) -> Choice:
        assert self.finish_reason is not None, "the stream ended before the choice did"
        text = "".join(self.content)
        has_call = bool(self.calls) or self.function_call is not None
        is_cut_call = self.may_call and self.finish_reason == "length"
        message = MessageBody(content=None if not text and (has_call or is_cut_call) else text)
        if self.reasoning:
            message.reasoning_content = message.reasoning = "".join(self.reasoning)
        if self.calls:
            message.tool_calls = [self.calls[i].body() for i in sorted(self.calls)]
        if self.function_call is not None:
            message.function_call = self.function_call.function_body()
        return Choice(
            index=index,
            message=message,
            logprobs=None if self.logprobs is None else LogprobsBody(self.logprobs),
            finish_reason=self.finish_reason,
            token_ids=self.token_ids,
        )


class ChatCollector:
    """Collects the chunks of one request. They must include the usage."""

    def __init__(self, head: CompletionHead, metadata: dict[str, str] | None) -> None:
        self._head = head
        self._metadata = metadata
        self._choices: dict[int, _CollectedChoice] = {}
        self._usage: Usage | None = None
        self._first: ChatCompletionChunk | None = None

    def add(self, event: ChatCompletionChunk) -> None:
        for choice in event.choices:
            self._choices.setdefault(choice.index, _CollectedChoice()).add(choice)
        self._usage = event.usage or self._usage
        self._first = self._first or event

    def answer(self) -> ChatCompletion:
        first = self._first
        assert self._usage is not None, "the stream ended without its usage"
        assert first is not None
        head, metadata = self._head, self._metadata
        return ChatCompletion(
            id=head.id,
            created=head.created,
            model=head.model,
            choices=[self._choices[index].body(index) for index in sorted(self._choices)],
            usage=self._usage,
            system_fingerprint=head.system_fingerprint,
            service_tier=head.service_tier,
            metadata=UNSET if metadata is None else metadata,
            prompt_logprobs=first.prompt_logprobs,
            prompt_token_ids=first.prompt_token_ids,
        )
