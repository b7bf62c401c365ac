"""`/v1/responses`: makes a response, and fetches, lists the input of and deletes those stored.

A stored response belongs to a key.
"""

from fastapi import Request, Response

from stonechat_server.api.openapi.document import (
    answered,
    errors,
    generated,
    json_body,
    request_body,
)
from stonechat_server.api.router import Router, add_endpoint, json_answer
from stonechat_server.api.shared.compute import count_prompt
from stonechat_server.api.shared.owned import page_limit, page_order, query
from stonechat_server.errors import APIError, unsupported
from stonechat_server.responses_api.answer import DeletedResponse, InputTokens
from stonechat_server.responses_api.endpoint import InputTokensEndpoint, ResponsesEndpoint
from stonechat_server.responses_api.history import not_found
from stonechat_server.responses_api.input_items import list_items
from stonechat_server.serving.services import services_of
from stonechat_server.serving.stored_responses import StoredResponse

router = Router(tags=["Responses"])
ENDPOINT = ResponsesEndpoint()
add_endpoint(
    router,
    ENDPOINT,
    "createResponse",
    "Continue a list of items. The answer is plain JSON or a stream of named events.",
    generated("Response", "ResponseEvent", end=""),
    body="ResponsesRequest",
)

INPUT_TOKENS = InputTokensEndpoint()
_PAGE = {
    "parameters": [
        query("limit", "How many", {"type": "integer", "minimum": 1, "maximum": 100}),
        query("order", "Oldest or newest first", {"type": "string", "enum": ["asc", "desc"]}),
        query("after", "The id of the last item of the page before", {"type": "string"}),
    ]
}


@router.post(
    INPUT_TOKENS.path,
    operation_id="countInputTokens",
    responses=answered("InputTokens"),
    openapi_extra=request_body("ResponsesRequest"),
)
async def count_input_tokens(http_request: Request) -> Response:
    """Count the tokens of the prompt that a request has. Nothing is stored."""
    return await count_prompt(http_request, INPUT_TOKENS, InputTokens)


@router.get(
    "/v1/responses/{response_id}",
    operation_id="getResponse",
    responses={200: {"content": json_body("Response")}, **errors(400, 401, 404, 429, 503)},
)
async def get_response(http_request: Request, response_id: str) -> Response:
    """Fetch a stored response, without its log-probabilities."""
    if http_request.query_params.get("stream", "false") != "false":
        raise unsupported("stream", "'stream' is not supported here: a stored response is whole.")
    body = _find(http_request, response_id).body
    headers = {"x-ignored-params": "include"} if _includes(http_request) else None
    return Response(body, media_type="application/json", headers=headers)


def _includes(http_request: Request) -> bool:
    """Whether the query asks for more than what the answer had."""
    return not {"include", "include[]"}.isdisjoint(http_request.query_params)


@router.get(
    "/v1/responses/{response_id}/input_items",
    operation_id="listInputItems",
    responses={200: {"content": json_body("ResponseItemList")}, **errors(400, 401, 404, 429, 503)},
    openapi_extra=_PAGE,
)
async def list_input_items(http_request: Request, response_id: str) -> Response:
    """List the items that a stored response was made from, those of earlier turns too."""
    response = _find(http_request, response_id)
    page = list_items(
        response,
        limit=page_limit(http_request, 20, 100),
        is_descending=page_order(http_request) == "desc",
        after=http_request.query_params.get("after"),
    )
    return json_answer(page)


@router.delete(
    "/v1/responses/{response_id}",
    operation_id="deleteResponse",
    responses={200: {"content": json_body("DeletedResponse")}, **errors(401, 404, 429, 503)},
)
async def delete_response(http_request: Request, response_id: str) -> Response:
    """Delete a stored response. What continues it keeps its items."""
    response = _find(http_request, response_id)
    services_of(http_request).responses.delete(response)
    return json_answer(DeletedResponse(id=response_id))


def _find(http_request: Request, id: str) -> StoredResponse:
    """A response of the key of the request. Raises `APIError`: 401, 404, 429 and 503."""
    services = services_of(http_request)
    identity = services.authenticator.identify(http_request)
    services.lifecycle.check()
    services.count_request(identity)
    response = services.responses.find(identity.key.name, id)
    if response is None:
        message = f"Response {not_found(services, id)}"
        raise APIError(404, message, param="response_id", code="response_not_found")
    return response
