"""`GET /v1/models`, `/v1/models/{id}` and `/props`; `POST /v1/models/load` and `/v1/models/unload`.

All of them also without `/v1`. Clients that send the header `anthropic-version` get the list, and
errors, in Anthropic's shape.
"""

from dataclasses import asdict
from typing import Literal, TypeVar

from fastapi import Request, Response
from msgspec import UNSET
from starlette.exceptions import HTTPException

from stonechat_models import ModelInfo
from stonechat_server.access.auth import check_manages, check_model
from stonechat_server.api.openapi.document import errors, json_body, request_body
from stonechat_server.api.openapi.model_types import LoadRequest, UnloadRequest
from stonechat_server.api.router import Router, json_answer
from stonechat_server.catalog.entry import Entry
from stonechat_server.errors import APIError
from stonechat_server.infill_api.props import props_of
from stonechat_server.media.taken import modalities_of
from stonechat_server.messages_api.errors import is_for_anthropic
from stonechat_server.messages_api.models import ModelInfo as MessagesModel
from stonechat_server.messages_api.models import model_info, model_page
from stonechat_server.request.body import read_request
from stonechat_server.schema.responses import ModelCard, ModelList
from stonechat_server.serving.services import Services, services_of
from stonechat_server.streaming.sse import run_while_connected

router = Router(tags=["Models"])

ACTION_ERRORS = errors(400, 401, 403, 404, 408, 409, 413, 429, 503)


T = TypeVar("T", bound=LoadRequest)


@router.get(
    "/v1/models",
    operation_id="listModels",
    responses={
        200: {"content": json_body("ModelList", "ModelPage")},
        **errors(401, other="MessagesError"),
    },
)
async def list_models(http_request: Request) -> Response:
    """List the names that requests with this key may use as `model`."""
    state = services_of(http_request)
    key = state.authenticator.identify(http_request).key
    models = [(name, entry) for name, entry in state.models.items() if key.may_use(name)]
    if is_for_anthropic(http_request.scope):
        return json_answer(model_page([_info(name, entry) for name, entry in models]))
    return json_answer(ModelList([_card(name, entry) for name, entry in models]))


@router.get(
    "/v1/models/{model:path}",
    operation_id="retrieveModel",
    responses={
        200: {"content": json_body("ModelCard", "ModelInfo")},
        **errors(401, 404, other="MessagesError"),
    },
)
async def retrieve_model(http_request: Request, model: str) -> Response:
    """Describe one model. Its name may contain slashes."""
    if not model.strip("/"):
        raise HTTPException(404)
    state = services_of(http_request)
    model = check_model(model, state.models, state.authenticator.identify(http_request))
    describe = _info if is_for_anthropic(http_request.scope) else _card
    return json_answer(describe(model, state.models[model]))


@router.get(
    "/props",
    operation_id="retrieveProps",
    responses={200: {"content": json_body("Props")}, **errors(401, 404)},
)
async def retrieve_props(http_request: Request, model: str = "") -> Response:
    """Describe a model as llama.cpp's server does, by default the first that the key may use."""
    state = services_of(http_request)
    identity = state.authenticator.identify(http_request)
    name = check_model(model or None, state.models, identity)
    return json_answer(props_of(name, state.models[name]))


@router.post(
    "/v1/models/load",
    operation_id="loadModel",
    responses={200: {"content": json_body("ModelCard")}, **ACTION_ERRORS},
    openapi_extra=request_body("LoadRequest"),
)
async def load_model(http_request: Request) -> Response:
    """Load a model, and wait for it. Nothing happens if it is loaded."""
    state, wire = await _read(http_request, LoadRequest)
    entry = state.models[wire.model]
    if state.catalog is not None:
        await run_while_connected(http_request.receive, state.catalog.load(entry))
    return json_answer(_card(wire.model, entry))


@router.post(
    "/v1/models/unload",
    operation_id="unloadModel",
    responses={200: {"content": json_body("ModelCard")}, **ACTION_ERRORS},
    openapi_extra=request_body("UnloadRequest"),
)
async def unload_model(http_request: Request) -> Response:
    """Unload a model when its running requests have ended, or at once with `force`."""
    state, wire = await _read(http_request, UnloadRequest)
    await unload(http_request, wire.model, force=wire.force)
    return json_answer(_card(wire.model, state.models[wire.model]))


async def unload(http_request: Request, name: str, *, force: bool = False) -> None:
    """Unload the model of that name, and wait for it. Raises `APIError` 400 and 409."""
    state = services_of(http_request)
    if state.catalog is None:
        raise APIError(
            400,
            "This server has one model, which stays loaded. A table [models.NAME] in its TOML file "
            "makes it one that can be unloaded.",
            param="model",
            code="model_not_unloadable",
        )
    work = state.catalog.unload(state.models[name], force=force)
    await run_while_connected(http_request.receive, work)


async def _read(http_request: Request, kind: type[T]) -> tuple[Services, T]:
    """Read the body of an action on a model, if the key may do it. Raises `APIError`."""
    state = services_of(http_request)
    identity = state.authenticator.identify(http_request)
    check_manages(identity)
    wire = await read_request(http_request, state.settings, kind)
    wire.model = check_model(wire.model, state.models, identity)
    state.count_request(identity)
    return state, wire


def _info(name: str, entry: Entry) -> MessagesModel:
    return model_info(name, entry.created, entry.max_model_len or 0)


def _card(name: str, entry: Entry) -> ModelCard:
    served, view = entry.served, entry.views.get(name)
    return ModelCard(
        id=name,
        created=entry.created,
        owned_by="stonechat",
        root=entry.name if served is None else served.engine.model.name,
        parent=None if view is None else view.parent,
        state=entry.state,
        size=entry.num_bytes,
        error=None if entry.error is None else entry.error.message,
        max_model_len=entry.max_model_len,
        input_modalities=UNSET if served is None else _modalities(served.engine.model),
        stonechat=None if served is None else asdict(served.engine.model),
    )


def _modalities(info: ModelInfo) -> list[Literal["text", "image", "audio", "video"]]:
    modalities: list[Literal["text", "image", "audio", "video"]] = [*modalities_of(info)]
    return modalities if info.speech is not None else ["text", *modalities]
