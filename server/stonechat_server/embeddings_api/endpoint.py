"""The endpoint `/v1/embeddings`: each input is a prompt of which the engine makes an embedding."""

from stonechat_models import EmbeddingParams, SamplingParams
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.embeddings_api.fields import EMBEDDING_FIELDS
from stonechat_server.embeddings_api.inputs import InputEncoder, params_without_effect
from stonechat_server.embeddings_api.request import EmbeddingRequest
from stonechat_server.embeddings_api.writer import EmbeddingCollector, EmbeddingWriter
from stonechat_server.errors import APIError, invalid, other_use
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.serving.endpoint import Call, VectorEndpoint
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import CompletionHead

MANY_INPUTS = 16
"""More inputs than that take long to prepare, as each may get a prompt of the model."""


class EmbeddingsEndpoint(VectorEndpoint):
    """Embeddings."""

    path = "/v1/embeddings"
    wire_type = EmbeddingRequest
    id_prefix = "embd-"
    prompt_fields = frozenset({"input"})
    fields = EMBEDDING_FIELDS

    def takes_long(self, call: Call) -> bool:
        return len(call.wire.inputs) > MANY_INPUTS

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        engine = model.engine
        wire: EmbeddingRequest = call.wire
        info = engine.model.embedding
        call.ignored = [*call.ignored, *params_without_effect(wire, engine.model)]
        if info is None and not engine.model.generates:
            raise other_use(engine.model, "makes no embeddings", "model_not_embedding")
        if info is None:
            raise APIError(
                400,
                f"{call.request.model or engine.model.name} generates text; it is not served for "
                "embeddings. Start the server with --embeddings, or with an embedding model.",
                param="model",
                code="model_not_embedding",
            )
        if wire.dimensions is not None and wire.dimensions > info.size:
            message = f"This model's embeddings have {info.size} dimensions, not {wire.dimensions}."
            raise invalid("dimensions", message)
        as_text = model.settings.special_tokens_as_text
        encoder = InputEncoder(wire, engine, info, as_text=as_text)
        return [
            PreparedRequest(
                prompt_token_ids=item.token_ids,
                params=SamplingParams(max_tokens=0),
                new_parser=None,
                embedding=EmbeddingParams(
                    dimensions=wire.dimensions,
                    normalize=wire.normalize,
                    num_unpooled=item.num_unpooled,
                ),
            )
            for item in encoder.encode_all(wire)
        ]

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> EmbeddingWriter:
        return EmbeddingWriter(head, reader, as_base64=call.wire.encoding_format == "base64")

    def collector(self, call: Call, head: CompletionHead) -> EmbeddingCollector:
        return EmbeddingCollector(head)
