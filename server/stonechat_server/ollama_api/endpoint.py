"""The endpoints `/api/chat` and `/api/generate`."""

from abc import abstractmethod
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal, cast

from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.completions_api.endpoint import CompletionsEndpoint
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.media.references import find_media
from stonechat_server.ollama_api import reading
from stonechat_server.ollama_api.answer import OllamaChatLine, OllamaGenerateLine, Said
from stonechat_server.ollama_api.fields import FIELDS
from stonechat_server.ollama_api.request import OllamaChat, OllamaGenerate, TextRequest
from stonechat_server.ollama_api.writer import LineType, OllamaCollector, OllamaWriter
from stonechat_server.request.field_checks import refuse_rejected
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.serving.truncation import prepare_shortened
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead

Done = Literal["load", "unload"]
COMPLETIONS = CompletionsEndpoint()


@dataclass(slots=True, kw_only=True)
class OllamaCall(Call):
    """A call that may be for no answer at all, but to load or to unload a model."""

    is_empty: bool
    unloads: bool = False
    model: str | None
    """The model's name as the client wrote it, perhaps with `:latest`."""
    started: float = field(default_factory=monotonic)


class OllamaEndpoint(Endpoint):
    """What both endpoints for text have in common."""

    id_prefix = "ollama-"
    takes_media = True
    streams_lines = True
    image_path: str
    """The path of the images of message i in the body, with `{i}`."""
    line_type: LineType

    def read(self, wire: TextRequest, services: Services, identity: Identity) -> OllamaCall:
        refuse_rejected(wire, FIELDS)
        reading.check_number_of_images(wire, services.settings)
        messages = reading.MessageReader(self.image_path)
        request: SamplingFields = ChatCompletionRequest.model_construct(messages=[])
        if not wire.is_empty:
            request = self.translate(wire, messages)
        has_images = bool(messages.image_paths)
        return OllamaCall(
            request=request,
            wire=wire,
            ignored=reading.ignored(wire),
            names=[*messages.image_paths, *reading.NAMES],
            media=find_media(cast(Any, request).messages) if has_images else (),
            is_empty=wire.is_empty,
            unloads=wire.asks_to_unload,
            model=wire.model,
        )

    @abstractmethod
    def translate(self, wire: Any, messages: reading.MessageReader) -> SamplingFields:
        """Translate a request that is not empty. Raises `APIError` 400."""

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        call.request = reading.with_defaults(call.request, model.engine.model)
        return super().prepare(call, model)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> OllamaWriter:
        own = cast(OllamaCall, call)
        return OllamaWriter(head, reader, self.line_type, own.model or head.model, own.started)

    def collector(self, call: Call, head: CompletionHead) -> OllamaCollector:
        return OllamaCollector()

    def empty_answer(self, call: OllamaCall, done: Done) -> object:
        """The answer to a request that only loads or unloads the model."""
        model = call.model or call.request.model or ""
        now = datetime.now(UTC)
        return self.line_type.of(Said(), model=model, created_at=now, done=True, done_reason=done)


class OllamaChatEndpoint(OllamaEndpoint):
    """Conversations."""

    path = "/api/chat"
    wire_type = OllamaChat
    prompt_fields = frozenset({"messages"})
    image_path = "messages[{i}].images"
    line_type = OllamaChatLine

    def translate(self, wire: OllamaChat, messages: reading.MessageReader) -> ChatCompletionRequest:
        return reading.to_chat(wire, messages)

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        """Prepare the conversation, or its end if it is too long and may be cut."""
        if call.wire.truncate is False:
            return super().prepare(call, model)
        return prepare_shortened(call, model, super().prepare)


class OllamaGenerateEndpoint(OllamaEndpoint):
    """A prompt as a message, or as a text to continue."""

    path = "/api/generate"
    wire_type = OllamaGenerate
    prompt_fields = frozenset({"system", "prompt", "suffix"})
    image_path = "images"
    line_type = OllamaGenerateLine

    def translate(self, wire: OllamaGenerate, messages: reading.MessageReader) -> SamplingFields:
        if reading.is_raw(wire):
            return reading.to_completion(wire, CompletionRequest)
        return reading.prompt_to_chat(wire, messages)

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        if not isinstance(call.request, CompletionRequest):
            return super().prepare(call, model)
        call.request = reading.with_defaults(call.request, model.engine.model)
        return COMPLETIONS.prepare(call, model)
