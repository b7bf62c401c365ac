"""`POST /v1/embeddings`."""

from fastapi import Request, Response

from stonechat_server.api.openapi.document import (
    GENERATION_ERRORS,
    HEADERS,
    errors,
    json_body,
    request_body,
)
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import generate
from stonechat_server.embeddings_api.endpoint import EmbeddingsEndpoint

router = Router(tags=["Embeddings"])
ENDPOINT = EmbeddingsEndpoint()


@router.post(
    ENDPOINT.path,
    operation_id="createEmbedding",
    responses={
        200: {
            "description": "The embeddings in the order of the inputs",
            "headers": HEADERS,
            "content": json_body("EmbeddingList"),
        },
        **errors(*GENERATION_ERRORS),
    },
    openapi_extra=request_body("EmbeddingRequest"),
)
async def create_embedding(http_request: Request) -> Response:
    """Turn texts into vectors, with a model that is served for embeddings."""
    return await generate(http_request, ENDPOINT)
