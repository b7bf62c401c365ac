"""The wire types that the OpenAPI document describes."""

import operator
from collections.abc import Mapping
from functools import reduce
from typing import Any

from pydantic import BaseModel

from stonechat_server.api.openapi.model_types import LoadRequest, UnloadRequest
from stonechat_server.batches_api.answer import Batch, BatchList
from stonechat_server.batches_api.request import BatchRequest
from stonechat_server.completions_api.answer import Completion
from stonechat_server.completions_api.request import CompletionRequest
from stonechat_server.embeddings_api.answer import EmbeddingList
from stonechat_server.embeddings_api.request import EmbeddingRequest
from stonechat_server.files_api.answer import DeletedFile, FileList, FileObject
from stonechat_server.infill_api.answer import InfillAnswer
from stonechat_server.infill_api.props import Props
from stonechat_server.infill_api.request import InfillRequest
from stonechat_server.messages_api.answer import MessageAnswer, MessageEvent, TokenCount
from stonechat_server.messages_api.errors import MessagesError
from stonechat_server.messages_api.models import ModelInfo, ModelPage
from stonechat_server.messages_api.request import CountTokensRequest, MessagesRequest
from stonechat_server.ollama_api import answer as ollama
from stonechat_server.ollama_api import models as ollama_models
from stonechat_server.ollama_api.errors import OllamaError
from stonechat_server.ollama_api.request import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaModelName,
)
from stonechat_server.rerank_api.answer import RerankAnswer, ScoreList
from stonechat_server.rerank_api.request import RerankRequest, ScoreRequest
from stonechat_server.responses_api.answer import (
    DeletedResponse,
    InputTokens,
    Response,
    ResponseItemList,
)
from stonechat_server.responses_api.events import Event as ResponseEvent
from stonechat_server.responses_api.request import ResponsesRequest
from stonechat_server.schema.errors import ErrorResponse
from stonechat_server.schema.requests import ChatCompletionRequest
from stonechat_server.schema.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    ModelCard,
    ModelList,
)
from stonechat_server.tokens_api import types as tokens
from stonechat_server.transcriptions_api.answer import (
    TranscriptDelta,
    TranscriptDone,
    Transcription,
    VerboseTranscription,
)

PREFIXES = {
    "schema": "Chat",
    "completions_api": "Completion",
    "responses_api": "Response",
    "messages_api": "Anthropic",
    "embeddings_api": "Embedding",
    "ollama_api": "Ollama",
    "rerank_api": "Rerank",
    "api": "Token",
}
"""What the name of a type begins with, by its package, if several types have its name."""
REQUESTS: tuple[type[BaseModel], ...] = (
    *(ChatCompletionRequest, CompletionRequest, InfillRequest, ResponsesRequest),
    *(MessagesRequest, CountTokensRequest, EmbeddingRequest),
    *(RerankRequest, ScoreRequest, BatchRequest),
    *(tokens.TokenizeTextRequest, tokens.TokenizeChatRequest, tokens.DetokenizeRequest),
    *(LoadRequest, UnloadRequest),
    *(OllamaChat, OllamaGenerate, OllamaEmbed, OllamaEmbeddings, OllamaModelName),
)
ANSWERS: tuple[type, ...] = (
    *(ChatCompletion, ChatCompletionChunk, Completion, InfillAnswer, Props, Response),
    *(ResponseItemList, DeletedResponse, InputTokens),
    *(MessageAnswer, TokenCount, MessagesError, EmbeddingList),
    *(RerankAnswer, ScoreList),
    *(tokens.TokenizeAnswer, tokens.DetokenizeAnswer, tokens.TokenizerInfo),
    *(tokens.RenderedChat, tokens.Version),
    *(FileObject, FileList, DeletedFile, Batch, BatchList),
    *(Transcription, VerboseTranscription, TranscriptDelta, TranscriptDone),
    *(ModelCard, ModelList, ModelInfo, ModelPage, ErrorResponse),
    *(ollama.OllamaChatLine, ollama.OllamaGenerateLine, ollama.OllamaEmbedAnswer),
    *(ollama.OllamaEmbeddingsAnswer, ollama.OllamaStatus, ollama.OllamaVersion),
    *(ollama_models.OllamaModelList, ollama_models.OllamaLoadedList),
    *(ollama_models.OllamaModelDetails, OllamaError),
)

_MESSAGES = [{"role": "user", "content": "Name a river."}]
EXAMPLES: dict[str, dict[str, object]] = {
    "ChatCompletionRequest": {"messages": _MESSAGES, "max_completion_tokens": 50},
    "CompletionRequest": {"prompt": "The river is called", "max_tokens": 50},
    "InfillRequest": {"input_prefix": "def add(a, b):\n", "input_suffix": "\n", "n_predict": 50},
    "ResponsesRequest": {"input": "Name a river.", "max_output_tokens": 50},
    "MessagesRequest": {"messages": _MESSAGES, "max_tokens": 50},
    "CountTokensRequest": {"messages": _MESSAGES},
    "EmbeddingRequest": {"input": "Name a river."},
    "RerankRequest": {
        "query": "What flows?",
        "documents": ["The Volga is a river.", "Everest is a mountain."],
    },
    "ScoreRequest": {"text_1": "What flows?", "text_2": "The Volga is a river."},
    "BatchRequest": {
        "input_file_id": "file-0123456789abcdef01234567",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    },
    "TokenizeTextRequest": {"prompt": "Name a river.", "return_token_strs": True},
    "DetokenizeRequest": {"tokens": [1, 2, 3]},
    "LoadRequest": {"model": "SmolLM2-135M-Instruct"},
    "UnloadRequest": {"model": "SmolLM2-135M-Instruct"},
    "OllamaChat": {"messages": _MESSAGES, "options": {"num_predict": 50}},
    "OllamaGenerate": {"prompt": "Name a river.", "options": {"num_predict": 50}},
    "OllamaEmbed": {"input": "Name a river."},
    "OllamaEmbeddings": {"prompt": "Name a river."},
    "OllamaModelName": {"model": "SmolLM2-135M-Instruct"},
}
"""A body of each kind that any server accepts, for a first try."""
_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGklEQVR42mO4YKCAFSkkXMCKGEY1jGoYvhoAvvQ4EITL"
    "i7YAAAAASUVORK5CYII="
)
_URL = f"data:image/png;base64,{_PNG}"


def _question(image: Mapping[str, object], text_type: str = "text") -> dict[str, object]:
    """A message with an image."""
    text = {"type": text_type, "text": "Which two colours do you see?"}
    return {"role": "user", "content": [image, text]}


_CHAT_IMAGE = {"type": "image_url", "image_url": {"url": _URL, "detail": "auto"}}
_INPUT_IMAGE = {"type": "input_image", "image_url": _URL, "detail": "auto"}
_SOURCE = {"type": "base64", "media_type": "image/png", "data": _PNG}
IMAGE_EXAMPLES: dict[str, dict[str, object]] = {
    "ChatCompletionRequest": {"messages": [_question(_CHAT_IMAGE)], "max_completion_tokens": 50},
    "ResponsesRequest": {
        "input": [{"type": "message", **_question(_INPUT_IMAGE, "input_text")}],
        "max_output_tokens": 50,
    },
    "MessagesRequest": {
        "messages": [_question({"type": "image", "source": _SOURCE})],
        "max_tokens": 50,
    },
}
"""Bodies with an image, red on the left and blue on the right, for models that see."""


def union(base: type) -> Any:
    """The union of the types below `base` that have no types below them."""
    below: list[type] = base.__subclasses__()
    return reduce(operator.or_, map(union, below)) if below else base


EVENTS: dict[str, Any] = {"MessageEvent": MessageEvent, "ResponseEvent": union(ResponseEvent)}
"""The types of the events of a stream that has several, by the name of their union."""
