"""`GET /v1/models` and `GET /v1/models/{id}`, also without `/v1`.

Clients that send the header `anthropic-version` get the list, and errors, in Anthropic's shape.
"""

from dataclasses import asdict

import msgspec
from fastapi import APIRouter, Request, Response

from stonechat_server.access.auth import check_model
from stonechat_server.api.openapi import errors, json_body
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.messages_api.errors import is_for_anthropic
from stonechat_server.messages_api.models import ModelInfo, ModelPage, model_info, model_page
from stonechat_server.schema.responses import ModelCard, ModelList
from stonechat_server.serving.services import services_of

router = APIRouter(tags=["Models"])


@router.get(
    "/v1/models",
    operation_id="listModels",
    responses={
        200: {"content": json_body("ModelList", "ModelPage")},
        **errors(401, other="MessagesError"),
    },
)
@router.get("/models", include_in_schema=False)
async def list_models(http_request: Request) -> Response:
    """List the names that requests with this key may use as `model`."""
    state = services_of(http_request)
    key = state.authenticator.identify(http_request).key
    names = [name for name in state.models if key.may_use(name)]
    if is_for_anthropic(http_request.scope):
        return _json(model_page([_info(name, state.models[name]) for name in names]))
    return _json(ModelList([_card(name, state.models[name]) for name in names]))


@router.get(
    "/v1/models/{model:path}",
    operation_id="retrieveModel",
    responses={
        200: {"content": json_body("ModelCard", "ModelInfo")},
        **errors(401, 404, other="MessagesError"),
    },
)
@router.get("/models/{model:path}", include_in_schema=False)
async def retrieve_model(http_request: Request, model: str) -> Response:
    """Describe one model. Its name may contain slashes."""
    state = services_of(http_request)
    check_model(model, state.models, state.authenticator.identify(http_request))
    return _json(
        (_info if is_for_anthropic(http_request.scope) else _card)(model, state.models[model])
    )


def _info(name: str, model: ServedModel) -> ModelInfo:
    return model_info(name, model.created, model.engine.model.max_model_len)


def _card(name: str, model: ServedModel) -> ModelCard:
    info = model.engine.model
    return ModelCard(
        id=name,
        created=model.created,
        owned_by="stonechat",
        root=info.name,
        parent=model.parent,
        max_model_len=info.max_model_len,
        stonechat=asdict(info),
    )


def _json(body: ModelCard | ModelList | ModelInfo | ModelPage) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
