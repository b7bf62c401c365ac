"""`POST /v1/rerank`, also as `/v2/rerank` and `/v1/reranking`, and `POST /v1/score`."""

from stonechat_server.api.openapi.document import answered, request_body
from stonechat_server.api.router import Router
from stonechat_server.api.shared.generate import route_of
from stonechat_server.rerank_api.endpoint import RerankEndpoint, ScoreEndpoint

router = Router(tags=["Reranking"])
ENDPOINT = RerankEndpoint()
SCORES = ScoreEndpoint()
router.post(
    ENDPOINT.path,
    operation_id="createRerank",
    responses=answered("RerankAnswer", what="The documents, the best first"),
    openapi_extra=request_body("RerankRequest"),
    summary="Create Rerank",
    description="Put documents in the order of how well they answer a question, with a reranker.",
)(route_of(ENDPOINT))
for path in ("/v2/rerank", "/v1/reranking"):  # where clients of Cohere and of llama.cpp look for it
    router.post(path, include_in_schema=False)(route_of(ENDPOINT))
router.post(
    SCORES.path,
    operation_id="createScore",
    responses=answered("ScoreList", what="The scores in the order of the pairs"),
    openapi_extra=request_body("ScoreRequest"),
    summary="Create Score",
    description="Score pairs of texts with a reranker.",
)(route_of(SCORES))
