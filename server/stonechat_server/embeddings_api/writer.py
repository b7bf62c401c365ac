"""Makes the answer of the engine's outputs: one item per input, then all items in order."""

import sys
from array import array
from base64 import b64encode
from typing import cast

import msgspec

from stonechat_server.embeddings_api.answer import EmbeddingItem, EmbeddingList, EmbeddingUsage
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, Event

_encode = msgspec.json.Encoder().encode


class EncodedItem(msgspec.Struct):
    """An item of the answer as JSON, so that a long list is not encoded at once."""

    index: int
    json: bytes


class EmbeddingWriter(AnswerWriter):
    """Makes an `EncodedItem` of each embedding, and the usage at the end."""

    joins = False

    def __init__(self, head: CompletionHead, reader: AnswerReader, *, as_base64: bool) -> None:
        super().__init__(head, reader)
        self._as_base64 = as_base64

    def write(self, piece: Piece) -> list[Event]:
        if piece.finish_reason is None:
            return []
        data = self.reader.embedding_of(piece.index)
        embedding = b64encode(data).decode() if self._as_base64 else to_floats(data)
        return [EncodedItem(piece.index, _encode(self.item(piece.index, embedding)))]

    def item(self, index: int, embedding: list[float] | str) -> object:
        """What the answer has of an input."""
        return EmbeddingItem(index=index, embedding=embedding)

    def end(self) -> list[Event]:
        num_tokens = self.reader.usage().num_prompt
        return [EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)]


class EmbeddingCollector:
    """Puts the items in the order of the inputs."""

    def __init__(self, head: CompletionHead) -> None:
        self._model = head.model
        self._items: dict[int, msgspec.Raw] = {}
        self._usage = EmbeddingUsage(prompt_tokens=0, total_tokens=0)

    def add(self, event: Event) -> None:
        if isinstance(event, EmbeddingUsage):
            self._usage = event
        else:
            self._items[event.index] = msgspec.Raw(event.json)

    def answer(self) -> object:
        items = cast(list[EmbeddingItem], self.items())
        return EmbeddingList(model=self._model, data=items, usage=self._usage)

    def items(self) -> list[msgspec.Raw]:
        """The JSON of each item, in the order of the inputs."""
        return [self._items[index] for index in sorted(self._items)]


def to_floats(data: bytes) -> list[float]:
    """The numbers of little-endian float32."""
    values = array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()
