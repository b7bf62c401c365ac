"""The endpoints `/v1/messages` and `/v1/messages/count_tokens`."""

from stonechat_models import PromptTooLongError
from stonechat_server.access.auth import Identity
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import APIError
from stonechat_server.media.references import find_media
from stonechat_server.messages_api.collect import MessagesCollector
from stonechat_server.messages_api.conversation import ImagePaths
from stonechat_server.messages_api.errors import error_body
from stonechat_server.messages_api.reading import ignored, names, to_chat
from stonechat_server.messages_api.request import (
    CountTokensRequest,
    MessagesFields,
    MessagesRequest,
)
from stonechat_server.messages_api.writer import MessagesWriter
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead, encode_named


class MessagesEndpoint(Endpoint):
    """Messages in Anthropic's shape."""

    path = "/v1/messages"
    id_prefix = "msg_"
    prompt_fields = frozenset({"system", "messages"})
    wire_type: type[MessagesFields] = MessagesRequest
    takes_media = True

    def read(self, wire: MessagesFields, services: Services, identity: Identity) -> Call:
        paths: ImagePaths = {}
        request = to_chat(wire, paths)
        media = find_media(request.messages) if paths else []
        own_paths = [(image.path, paths[id(image.part)]) for image in media]
        return Call(
            request=request,
            wire=wire,
            ignored=ignored(wire),
            names=[*own_paths, *names(wire)],
            media=media,
        )

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        """Prepare the prompt.

        A budget for reasoning does not apply to a model without reasoning: clients set it for any
        model. The words for a prompt that is too long are those by which clients know that they
        must shorten it.
        """
        try:
            return super().prepare(call, model)
        except PromptTooLongError as error:
            raise APIError(
                400,
                f"prompt is too long: {error.num_prompt_tokens} tokens > "
                f"{error.max_model_len - 1} maximum",
                code="context_length_exceeded",
            ) from error
        except APIError as error:
            if error.param != "thinking_budget" or call.wire.thinking_budget is not None:
                raise
        call.request = call.request.model_copy(update={"thinking_budget": None})
        call.ignored = [*call.ignored, "thinking.budget_tokens"]
        return super().prepare(call, model)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> MessagesWriter:
        wire: MessagesRequest = call.wire
        limit = call.prepared[0].params.max_tokens
        return MessagesWriter(
            head,
            reader,
            hides_thinking=wire.thinking is not None and wire.thinking.display == "omitted",
            is_shortened=limit is not None and not 0 <= wire.max_tokens <= limit,
        )

    def encode_early_error(self, error: APIError, request_id: str) -> bytes:
        return encode_named("error", error_body(error, request_id))

    def collector(self, call: Call, head: CompletionHead) -> MessagesCollector:
        return MessagesCollector()


class CountTokensEndpoint(MessagesEndpoint):
    """The same requests, of which only the prompt's tokens are counted."""

    path = "/v1/messages/count_tokens"
    wire_type = CountTokensRequest
