"""The endpoints whose only route takes a body for a model: chat, texts, embeddings and scores."""

from stonechat_server.api.openapi.document import answered, generated
from stonechat_server.api.router import Router, add_endpoint
from stonechat_server.api.shared.generate import route_of
from stonechat_server.chat_api.endpoint import ChatEndpoint
from stonechat_server.completions_api.endpoint import CompletionsEndpoint
from stonechat_server.embeddings_api.endpoint import EmbeddingsEndpoint
from stonechat_server.infill_api.endpoint import InfillEndpoint
from stonechat_server.rerank_api.endpoint import RerankEndpoint, ScoreEndpoint

router = Router()

CHAT = ChatEndpoint()
add_endpoint(
    router,
    CHAT,
    "createChatCompletion",
    "Continue a conversation. The answer is plain JSON or a stream of events.",
    generated("ChatCompletion", "ChatCompletionChunk"),
    body="ChatCompletionRequest",
    tag="Chat completions",
)
COMPLETIONS = CompletionsEndpoint()
add_endpoint(
    router,
    COMPLETIONS,
    "createCompletion",
    "Continue a text, or each of several. The answer is plain JSON or a stream of events.",
    generated("Completion", "Completion"),
    body="CompletionRequest",
    tag="Completions",
)
add_endpoint(
    router,
    InfillEndpoint(),
    "createInfill",
    "Fill in the middle of a text. The answer is plain JSON or a stream of events.",
    generated("InfillAnswer", "InfillAnswer"),
    body="InfillRequest",
    tag="Completions",
)
EMBEDDINGS = EmbeddingsEndpoint()
add_endpoint(
    router,
    EMBEDDINGS,
    "createEmbedding",
    "Turn texts into vectors, with a model that is served for embeddings.",
    answered("EmbeddingList", what="The embeddings in the order of the inputs"),
    body="EmbeddingRequest",
    tag="Embeddings",
)
RERANK = RerankEndpoint()
add_endpoint(
    router,
    RERANK,
    "createRerank",
    "Put documents in the order of how well they answer a question, with a reranker.",
    answered("RerankAnswer", what="The documents, the best first"),
    body="RerankRequest",
    tag="Reranking",
)
for path in ("/v2/rerank", "/v1/reranking"):  # where clients of Cohere and of llama.cpp look for it
    router.post(path, include_in_schema=False)(route_of(RERANK))
add_endpoint(
    router,
    ScoreEndpoint(),
    "createScore",
    "Score pairs of texts with a reranker.",
    answered("ScoreList", what="The scores in the order of the pairs"),
    body="ScoreRequest",
    tag="Reranking",
)
