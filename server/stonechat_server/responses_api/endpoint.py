"""The endpoint `/v1/responses`."""

import re
from functools import partial
from typing import Any, cast

from msgspec import UNSET, UnsetType

from stonechat_server.access.auth import Identity
from stonechat_server.access.keys import BATCH_PRIORITY
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import MISSING, APIError
from stonechat_server.request.field_checks import check_supported
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.responses_api.answer import Response
from stonechat_server.responses_api.events import StreamError
from stonechat_server.responses_api.fields import FIELDS
from stonechat_server.responses_api.history import PREVIOUS, References, dump_input, read_history
from stonechat_server.responses_api.input_items import given_fields
from stonechat_server.responses_api.marks import RESPONSE_PREFIX
from stonechat_server.responses_api.reading import ResponsesCall, read
from stonechat_server.responses_api.request import ResponsesRequest
from stonechat_server.responses_api.tools import Function, ToolParam, dumped
from stonechat_server.responses_api.writer import ResponseCollector, ResponseWriter
from stonechat_server.schema.base import WireModel
from stonechat_server.serving.endpoint import Call, Endpoint
from stonechat_server.serving.services import Services
from stonechat_server.serving.stored_responses import StoredResponse
from stonechat_server.serving.truncation import prepare_shortened
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead, encode_named

TOOL_NAME = re.compile(r"(tools\[\d+\]\.)+name|tool_choice(\.tools\[\d+\])?\.name")
FLAT_TOOLS = (
    'A tool is flat here, as {"type": "function", "name": ...}: what chat completions have inside '
    "'function' stands beside 'type'."
)


class ResponsesEndpoint(Endpoint):
    """OpenAI's Responses API. It stores its answers for a while."""

    path = "/v1/responses"
    wire_type = ResponsesRequest
    takes_media = True
    id_prefix = RESPONSE_PREFIX
    prompt_fields = frozenset({PREVIOUS, "instructions", "input"})

    def parse(self, body: bytes) -> WireModel:
        try:
            return super().parse(body)
        except APIError as error:
            if error.code == MISSING and TOOL_NAME.fullmatch(error.param or ""):
                error.message += f" {FLAT_TOOLS}"
            raise

    def asks_to_store(self, wire: ResponsesRequest, identity: Identity) -> bool:
        """Whether to store the answer. A batch has its answers in a file."""
        is_batch = identity.key.priority >= BATCH_PRIORITY
        return not is_batch if wire.store is None else wire.store

    def read(self, wire: ResponsesRequest, services: Services, identity: Identity) -> Call:
        check_supported(wire, FIELDS)
        if wire.input in (None, []) and wire.previous_response_id is None:
            raise APIError(400, "Missing required parameter: 'input'.", param="input", code=MISSING)
        store, owner = services.responses, identity.key.name
        history = read_history(services, owner, wire.previous_response_id)
        references = References(
            find=partial(store.find_items, owner),
            max_references=services.settings.max_messages,
            max_bytes=services.settings.max_body_size,
        )
        given = references.resolved(() if wire.input is None else wire.input)
        stored = None
        if store.is_on and self.asks_to_store(wire, identity):
            # Before `read` takes the images and audio out of the items.
            stored = StoredResponse(owner, dump_input(given), history.previous)
        call = read(wire, given, history.items)
        call.num_extra_bytes = references.num_bytes + history.num_bytes
        if stored is not None and store.begin(stored):
            call.keep = partial(store.complete, stored)
            call.at_end = partial(store.abandon, stored)
        return call

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        if call.wire.truncation != "auto":
            return super().prepare(call, model)
        return prepare_shortened(call, model, super().prepare)

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> ResponseWriter:
        call = cast(ResponsesCall, call)
        response = first_response(call, head)
        return ResponseWriter(head, reader, response, call)

    def encode_early_error(self, error: APIError, request_id: str) -> bytes:
        event = StreamError(
            sequence_number=0, code=error.code, message=error.message, param=error.param
        )
        return encode_named("error", event)

    def collector(self, call: Call, head: CompletionHead) -> ResponseCollector:
        return ResponseCollector()


class InputTokensEndpoint(ResponsesEndpoint):
    """The same requests, of which only the prompt's tokens are counted."""

    path = "/v1/responses/input_tokens"

    def asks_to_store(self, wire: ResponsesRequest, identity: Identity) -> bool:
        return False


def first_response(call: ResponsesCall, head: CompletionHead) -> Response:
    """The answer before its first item. It repeats the request, with its defaults."""
    wire: ResponsesRequest = call.wire
    params = call.prepared[0].params
    return Response(
        id=head.id,
        created_at=head.created,
        status="in_progress",
        model=head.model,
        output=[],
        store=call.keep is not None,
        previous_response_id=wire.previous_response_id,
        instructions=wire.instructions,
        max_output_tokens=wire.max_output_tokens,
        max_tool_calls=wire.max_tool_calls,
        metadata=wire.metadata or {},
        parallel_tool_calls=wire.parallel_tool_calls is not False,
        reasoning={"effort": None, "summary": None, **(dumped(wire.reasoning) or {})},
        temperature=params.temperature,
        text={"format": {"type": "text"}, **given_fields(dumped(wire.text) or {})},
        tool_choice=dumped(wire.tool_choice) or "auto",
        tools=[_tool(tool) for tool in call.tools.used],
        top_logprobs=wire.top_logprobs or 0,
        top_p=params.top_p,
        truncation=wire.truncation or "disabled",
        user=_or_unset(wire.user),
        safety_identifier=_or_unset(wire.safety_identifier),
        prompt_cache_key=_or_unset(wire.prompt_cache_key),
    )


def _or_unset(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value


def _tool(tool: ToolParam) -> dict[str, Any]:
    """A tool as the client sent it. A function has all fields that the API requires."""
    sent: dict[str, Any] = dumped(tool)
    required = {"parameters": None, "strict": None} if isinstance(tool, Function) else {}
    return {**required, **sent}
