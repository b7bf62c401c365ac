"""Reads the bodies of `/tokenize` and `/detokenize`. Conversations are read as chat requests."""

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from stonechat_server.access.auth import Identity
from stonechat_server.chat_api.endpoint import ChatEndpoint
from stonechat_server.errors import APIError, invalid
from stonechat_server.request.body import parse_request
from stonechat_server.request.field_checks import ignored_params
from stonechat_server.schema.base import WireModel
from stonechat_server.schema.sampling_fields import SamplingFields
from stonechat_server.serving.endpoint import Call
from stonechat_server.serving.services import Services
from stonechat_server.tokens_api.fields import TOKENIZE_CHAT_FIELDS
from stonechat_server.tokens_api.types import (
    DetokenizeRequest,
    TokenizeChatRequest,
    TokenizeTextRequest,
)

TEXTS = ("prompt", "content")
SOURCES = (*TEXTS, "messages")


class TokenizeEndpoint(ChatEndpoint):
    """A body with a text, or with messages."""

    path = "/tokenize"
    wire_type = TokenizeChatRequest
    fields = TOKENIZE_CHAT_FIELDS

    def parse(self, body: bytes) -> WireModel:
        given = _given_sources(body)
        if len(given) > 1:
            raise invalid(given[1], f"Give only one of '{given[0]}' and '{given[1]}'.")
        if given == ["messages"]:
            return super().parse(body)
        wire = parse_request(body, TokenizeTextRequest)
        if not given:
            raise APIError(
                400,
                "Missing required parameter: 'prompt' (or 'messages', or 'content').",
                param="prompt",
                code="missing_required_parameter",
            )
        return wire

    def read(self, wire: Any, services: Services, identity: Identity) -> Call:
        if not isinstance(wire, TokenizeTextRequest):
            return super().read(wire, services, identity)
        special = {wire.add_special_tokens, wire.add_special} - {None}
        if len(special) > 1:
            raise invalid(
                "add_special",
                "'add_special' and 'add_special_tokens' set the same option to different values.",
            )
        return _call(wire)

    def takes_long(self, call: Call) -> bool:
        if isinstance(call.wire, TokenizeTextRequest):
            return call.wire.parse_special is False  # the first time copies the vocabulary
        return super().takes_long(call)


class DetokenizeEndpoint(ChatEndpoint):
    """A body with token ids."""

    path = "/detokenize"
    takes_media = False

    def parse(self, body: bytes) -> DetokenizeRequest:
        return parse_request(body, DetokenizeRequest)

    def read(self, wire: Any, services: Services, identity: Identity) -> Call:
        return _call(wire)


TOKENIZE = TokenizeEndpoint()
DETOKENIZE = DetokenizeEndpoint()


def _call(wire: TokenizeTextRequest | DetokenizeRequest) -> Call:
    return Call(request=SamplingFields(), wire=wire, ignored=ignored_params(wire))


class _Sources(msgspec.Struct):
    """The keys that say what a body is about. Their values are not parsed."""

    prompt: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET


def _given_sources(body: bytes) -> list[str]:
    """The names of `SOURCES` that have a value. Empty for a body that is not an object."""
    try:
        sources = msgspec.json.decode(body, type=_Sources)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    values = {name: getattr(sources, name) for name in SOURCES}
    return [name for name, raw in values.items() if raw is not UNSET and bytes(raw) != b"null"]
