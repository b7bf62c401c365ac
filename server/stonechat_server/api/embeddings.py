"""`POST /v1/embeddings`."""

from stonechat_server.api.openapi.document import answered, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.embeddings_api.endpoint import EmbeddingsEndpoint

router = Router(tags=["Embeddings"])
ENDPOINT = EmbeddingsEndpoint()


router.post(
    ENDPOINT.path,
    operation_id="createEmbedding",
    responses=answered("EmbeddingList", what="The embeddings in the order of the inputs"),
    openapi_extra=request_body("EmbeddingRequest"),
    summary="Create Embedding",
    description="Turn texts into vectors, with a model that is served for embeddings.",
)(route_of(ENDPOINT))
