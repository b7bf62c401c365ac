"""Makes a plain message of the events of its stream."""

import json
from dataclasses import dataclass, field

import msgspec

from stonechat_server.messages_api.answer import (
    BlockBody,
    BlockDeltaEvent,
    BlockStart,
    InputJsonDelta,
    MessageAnswer,
    MessageDelta,
    MessageEvent,
    MessageStart,
    SignatureDelta,
    TextBody,
    TextDelta,
    ThinkingBody,
    ThinkingDelta,
    in_message,
)
from stonechat_server.messages_api.marks import INVALID_JSON


@dataclass(slots=True)
class _Block:
    start: BlockBody
    texts: list[str] = field(default_factory=list)
    signature: str = ""

    def body(self) -> BlockBody:
        text = "".join(self.texts)
        if isinstance(self.start, TextBody):
            return TextBody(text)
        if isinstance(self.start, ThinkingBody):
            return ThinkingBody(text, self.signature)
        return msgspec.structs.replace(self.start, input=input_json(text))


class MessagesCollector:
    """Collects the events of one answer."""

    def __init__(self) -> None:
        self._message: MessageAnswer | None = None
        self._blocks: list[_Block] = []

    def add(self, event: MessageEvent) -> None:
        match event:
            case MessageStart():
                self._message = event.message
            case BlockStart():
                self._blocks.append(_Block(event.content_block))
            case BlockDeltaEvent():
                self._add_delta(event)
            case MessageDelta():
                self._end(event)

    def answer(self) -> MessageAnswer:
        assert self._message is not None, "the stream ended before it began"
        return self._message

    def _add_delta(self, event: BlockDeltaEvent) -> None:
        block = self._blocks[event.index]
        match event.delta:
            case TextDelta(text=text) | ThinkingDelta(thinking=text):
                block.texts.append(text)
            case InputJsonDelta(partial_json=text):
                block.texts.append(text)
            case SignatureDelta(signature=signature):
                block.signature = signature

    def _end(self, event: MessageDelta) -> None:
        assert self._message is not None, "the stream ended before it began"
        self._message = msgspec.structs.replace(
            self._message,
            content=[block.body() for block in self._blocks],
            stop_reason=event.delta.stop_reason,
            stop_sequence=event.delta.stop_sequence,
            usage=in_message(event.usage),
        )


def input_json(text: str) -> msgspec.Raw:
    """The input of a call: the model's own JSON if it is an object, else an object that has it."""
    try:
        is_object = isinstance(msgspec.json.decode(text or "{}"), dict)
    except (ValueError, RecursionError):  # NaN is no JSON, for example
        is_object = False
    return msgspec.Raw((text or "{}") if is_object else json.dumps({INVALID_JSON: text}))
