"""The endpoints `/api/embed` and `/api/embeddings`: that of `/v1/embeddings` in other shapes."""

import time
from collections.abc import Sequence
from typing import Any, cast

from stonechat_server.access.auth import Identity
from stonechat_server.embeddings_api.endpoint import EmbeddingsEndpoint
from stonechat_server.embeddings_api.request import EmbeddingRequest
from stonechat_server.embeddings_api.writer import EmbeddingCollector, EmbeddingWriter
from stonechat_server.ollama_api import reading
from stonechat_server.ollama_api.answer import OllamaEmbedAnswer, OllamaEmbeddingsAnswer
from stonechat_server.ollama_api.endpoint import Done, OllamaCall
from stonechat_server.ollama_api.request import OllamaEmbed, OllamaEmbeddings
from stonechat_server.ollama_api.writer import nanoseconds
from stonechat_server.serving.endpoint import Call
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead

TO_THE_LIMIT = -1
"""Cuts longer texts to what the model takes."""


class VectorWriter(EmbeddingWriter):
    """The items are bare vectors."""

    def item(self, index: int, embedding: list[float] | str) -> object:
        return embedding


class OllamaEmbedCollector(EmbeddingCollector):
    """Makes the answer of `/api/embed`. It begins when the request is prepared."""

    def __init__(self, head: CompletionHead, call: OllamaCall) -> None:
        super().__init__(head)
        self._call = call
        self._prepared = time.monotonic()

    def answer(self) -> object:
        started = self._call.started
        return OllamaEmbedAnswer(
            model=self._call.model or self._model,
            embeddings=cast(list[list[float]], self.items()),
            total_duration=nanoseconds(time.monotonic() - started),
            load_duration=nanoseconds(self._prepared - started),
            prompt_eval_count=self._usage.prompt_tokens,
        )


class OllamaEmbeddingsCollector(EmbeddingCollector):
    """Makes the answer of `/api/embeddings`."""

    def answer(self) -> object:
        (vector,) = cast(list[list[float]], self.items())
        return OllamaEmbeddingsAnswer(vector)


class OllamaEmbedEndpoint(EmbeddingsEndpoint):
    """Embeddings of several texts, of length 1."""

    path = "/api/embed"
    wire_type: Any = OllamaEmbed
    id_prefix = "ollama-"
    names: Sequence[tuple[str, str]] = (("truncate_prompt_tokens", "truncate"),)

    def read(self, wire: Any, services: Services, identity: Identity) -> OllamaCall:
        call = super().read(self.translate(wire), services, identity)
        return OllamaCall(
            request=call.request,
            wire=call.wire,
            ignored=reading.ignored(wire),
            names=self.names,
            is_empty=wire.is_empty,
            unloads=wire.asks_to_unload,
            model=wire.model,
        )

    def translate(self, wire: Any) -> EmbeddingRequest:
        """The same request to `/v1/embeddings`."""
        values: dict[str, Any] = {"input": wire.input or "", "normalize": True}
        if wire.truncate is not False:
            values["truncate_prompt_tokens"] = TO_THE_LIMIT
        if wire.dimensions:
            values["dimensions"] = wire.dimensions
        return EmbeddingRequest.model_construct(**values)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> EmbeddingWriter:
        return VectorWriter(head, reader, as_base64=False)

    def collector(self, call: Call, head: CompletionHead) -> EmbeddingCollector:
        return OllamaEmbedCollector(head, cast(OllamaCall, call))

    def empty_answer(self, call: OllamaCall, done: Done) -> object:
        """The answer to a request that only loads or unloads the model."""
        return OllamaEmbedAnswer(model=call.model or call.request.model or "", embeddings=[])


class OllamaEmbeddingsEndpoint(OllamaEmbedEndpoint):
    """The embedding of one text, as the model makes it."""

    path = "/api/embeddings"
    wire_type = OllamaEmbeddings
    names = (("input", "prompt"),)

    def translate(self, wire: Any) -> EmbeddingRequest:
        return EmbeddingRequest.model_construct(input=wire.prompt or "")

    def collector(self, call: Call, head: CompletionHead) -> EmbeddingCollector:
        return OllamaEmbeddingsCollector(head)

    def empty_answer(self, call: OllamaCall, done: Done) -> object:
        return OllamaEmbeddingsAnswer([])
