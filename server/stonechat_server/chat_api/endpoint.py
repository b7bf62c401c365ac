"""The endpoint `/v1/chat/completions`: its request needs no translation."""

from collections.abc import Mapping, Sequence
from typing import cast

from stonechat_server.access.auth import Identity
from stonechat_server.chat_api.collect import ChatCollector
from stonechat_server.chat_api.writer import ChunkWriter
from stonechat_server.media.references import MediaReference, find_media
from stonechat_server.request.field_checks import ignored_params
from stonechat_server.request.legacy_functions import with_tools
from stonechat_server.request.other_names import given_names, with_own_names
from stonechat_server.schema.fields import FIELDS, OTHER_NAMES, FieldNote
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead


class ChatEndpoint(Endpoint):
    """Chat completions."""

    path = "/v1/chat/completions"
    id_prefix = "chatcmpl-"
    prompt_fields = frozenset({"messages"})
    wire_type = ChatCompletionRequest
    takes_media = True
    fields: Mapping[str, FieldNote] = FIELDS

    def read(self, wire: ChatCompletionRequest, services: Services, identity: Identity) -> Call:
        request = wire
        media: Sequence[MediaReference] = ()
        if any(isinstance(message.content, list | dict) for message in wire.messages):
            media = find_media(wire.messages)
        ignored = ignored_params(request, self.fields)
        names: Sequence[tuple[str, str]] = ()
        if not OTHER_NAMES.isdisjoint(request.model_fields_set):
            names = given_names(request)
            request = with_own_names(request)
        if request.functions is not None or request.function_call is not None:
            request = with_tools(request)
        return Call(request=request, wire=request, ignored=ignored, names=names, media=media)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> ChunkWriter:
        request, (prompt,) = cast(ChatCompletionRequest, call.request), call.prepared
        return ChunkWriter(head, reader, request, prompt.prompt_token_ids)

    def collector(self, call: Call, head: CompletionHead) -> ChatCollector:
        return ChatCollector(head, call.request.metadata)
