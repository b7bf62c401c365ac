"""Ollama's API: `/api/chat`, `/api/generate`, `/api/embed`, and what its clients ask of models."""

from collections.abc import Awaitable, Callable
from typing import cast

import msgspec
from fastapi import APIRouter, Request, Response

from stonechat_server.access.auth import check_manages, check_model
from stonechat_server.api.models import unload
from stonechat_server.api.openapi.document import (
    answered,
    errors,
    generated,
    json_body,
    request_body,
)
from stonechat_server.api.router import json_answer
from stonechat_server.api.shared.generate import JSON_LINES, answer, receive_counted
from stonechat_server.api.shared.on_demand import hold
from stonechat_server.catalog.entry import Entry
from stonechat_server.ollama_api.answer import OllamaStatus, OllamaVersion
from stonechat_server.ollama_api.embed import OllamaEmbeddingsEndpoint, OllamaEmbedEndpoint
from stonechat_server.ollama_api.endpoint import (
    Done,
    OllamaCall,
    OllamaChatEndpoint,
    OllamaGenerateEndpoint,
)
from stonechat_server.ollama_api.models import (
    OllamaLoadedList,
    OllamaModelList,
    described,
    in_list,
    in_memory,
)
from stonechat_server.ollama_api.request import OllamaModelName
from stonechat_server.request.body import read_request
from stonechat_server.serving.endpoint import Received
from stonechat_server.serving.services import services_of
from stonechat_server.streaming.sse import run_while_connected

OLLAMA_VERSION = "0.24.0"
"""The version of Ollama whose API this is. Clients ask for it to learn what the server can do."""
JSON, ERROR = "application/json", "OllamaError"
MODEL_ERRORS = errors(400, 401, 404, 408, 413, 429, name=ERROR)
TextEndpoint = OllamaChatEndpoint | OllamaGenerateEndpoint | OllamaEmbedEndpoint

router = APIRouter(tags=["Ollama"])


def _route_of(endpoint: TextEndpoint) -> Callable[[Request], Awaitable[Response]]:
    async def route(http_request: Request) -> Response:
        received = await receive_counted(http_request, endpoint)
        call = cast(OllamaCall, received.call)
        if not call.is_empty:
            return await answer(received)
        done = await _load_or_unload(received, unloads=call.unloads)
        return Response(msgspec.json.encode(endpoint.empty_answer(call, done)), media_type=JSON)

    return route


async def _load_or_unload(received: Received, *, unloads: bool) -> Done:
    """Do what a request without a prompt asks for. Raises `APIError`."""
    http_request, services = received.http_request, received.services
    name = received.call.request.model or ""
    services.count_request(received.identity)
    if unloads:
        check_manages(received.identity)
        await unload(http_request, name)
        return "unload"
    if services.catalog is not None:
        work = hold(http_request, services, services.models[name])
        await run_while_connected(http_request.receive, work)
    return "load"


router.post(
    "/api/chat",
    operation_id="ollamaChat",
    responses=generated("OllamaChatLine", "OllamaChatLine", name=ERROR, media_type=JSON_LINES),
    openapi_extra=request_body("OllamaChat"),
    summary="Chat",
    description="Continue a conversation. The answer is lines of JSON, or JSON.",
)(_route_of(OllamaChatEndpoint()))
router.post(
    "/api/generate",
    operation_id="ollamaGenerate",
    responses=generated(
        "OllamaGenerateLine", "OllamaGenerateLine", name=ERROR, media_type=JSON_LINES
    ),
    openapi_extra=request_body("OllamaGenerate"),
    summary="Generate",
    description="Answer a prompt, or continue it. The answer is lines of JSON, or JSON.",
)(_route_of(OllamaGenerateEndpoint()))
router.post(
    "/api/embed",
    operation_id="ollamaEmbed",
    responses=answered("OllamaEmbedAnswer", error=ERROR),
    openapi_extra=request_body("OllamaEmbed"),
    summary="Embed",
    description="Turn texts into vectors of length 1.",
)(_route_of(OllamaEmbedEndpoint()))
router.post(
    "/api/embeddings",
    operation_id="ollamaEmbeddings",
    responses=answered("OllamaEmbeddingsAnswer", error=ERROR),
    openapi_extra=request_body("OllamaEmbeddings"),
    summary="Embeddings",
    description="Turn one text into a vector.",
)(_route_of(OllamaEmbeddingsEndpoint()))


@router.get(
    "/api/tags",
    operation_id="ollamaTags",
    responses={200: {"content": json_body("OllamaModelList")}, **errors(401, name=ERROR)},
)
async def list_models(http_request: Request) -> Response:
    """List the models that requests with this key may use."""
    models = _models(http_request)
    return json_answer(OllamaModelList([in_list(name, entry) for name, entry in models]))


@router.get(
    "/api/ps",
    operation_id="ollamaPs",
    responses={200: {"content": json_body("OllamaLoadedList")}, **errors(401, name=ERROR)},
)
async def list_loaded(http_request: Request) -> Response:
    """List the models that are loaded."""
    is_sole = services_of(http_request).sole is not None
    loaded = {entry: name for name, entry in reversed(_models(http_request)) if entry.is_loaded}
    models = [in_memory(loaded[entry], entry, never_ends=is_sole) for entry in reversed(loaded)]
    return json_answer(OllamaLoadedList(models))


@router.post(
    "/api/show",
    operation_id="ollamaShow",
    responses={200: {"content": json_body("OllamaModelDetails")}, **MODEL_ERRORS},
    openapi_extra=request_body("OllamaModelName"),
)
async def show_model(http_request: Request) -> Response:
    """Describe one model."""
    name, entry, _ = await _named_model(http_request)
    return json_answer(described(name, entry))


@router.post(
    "/api/pull",
    operation_id="ollamaPull",
    responses=generated("OllamaStatus", "OllamaStatus", name=ERROR, media_type=JSON_LINES),
    openapi_extra=request_body("OllamaModelName"),
)
async def pull_model(http_request: Request) -> Response:
    """Say that a model is there. One that is not served cannot be fetched: it is a 404."""
    _, _, wire = await _named_model(http_request)
    if wire.stream is False:
        return json_answer(OllamaStatus())
    return Response(msgspec.json.encode(OllamaStatus()) + b"\n", media_type=JSON_LINES)


@router.get(
    "/api/version",
    operation_id="ollamaVersion",
    responses={200: {"content": json_body("OllamaVersion")}, **errors(401, name=ERROR)},
)
async def version(http_request: Request) -> Response:
    """Name the version of Ollama whose API this is."""
    services_of(http_request).authenticator.identify(http_request)
    return json_answer(OllamaVersion(OLLAMA_VERSION))


def _models(http_request: Request) -> list[tuple[str, Entry]]:
    """The names that the key may use, and what they name."""
    services = services_of(http_request)
    key = services.authenticator.identify(http_request).key
    return [(name, entry) for name, entry in services.models.items() if key.may_use(name)]


async def _named_model(http_request: Request) -> tuple[str, Entry, OllamaModelName]:
    """The model that a body names. Raises `APIError`."""
    services = services_of(http_request)
    identity = services.authenticator.identify(http_request)
    wire = await read_request(http_request, services.settings, OllamaModelName)
    name = check_model(wire.model or wire.name, services.models, identity)
    services.count_request(identity)
    return name, services.models[name], wire
