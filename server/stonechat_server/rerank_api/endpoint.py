"""The endpoints `/v1/rerank` and `/v1/score`: each pair of texts is a prompt to score."""

from abc import abstractmethod
from typing import Any

from stonechat_models import EmbeddingParams, SamplingParams
from stonechat_server.catalog.served_model import ServedModel
from stonechat_server.errors import invalid, other_use
from stonechat_server.request.prepare import PreparedRequest
from stonechat_server.rerank_api.fields import RERANK_FIELDS, SCORE_FIELDS
from stonechat_server.rerank_api.pairs import EncodedPair, FramedPairs, PairEncoder, TemplatePairs
from stonechat_server.rerank_api.request import PairFields, RerankRequest, ScoreRequest
from stonechat_server.rerank_api.writer import RankCollector, ScoreCollector, ScoreWriter
from stonechat_server.serving.endpoint import Call, VectorEndpoint
from stonechat_server.streaming.answer_reader import AnswerReader
from stonechat_server.streaming.answer_writer import Collector, CompletionHead

MANY_PAIRS = 16
"""More pairs than that take long to prepare."""
LONG_QUESTION = 1024
"""A question of so many characters counts as one more pair, each time that it is repeated."""


class PairsEndpoint(VectorEndpoint):
    """What both endpoints do."""

    def prepare(self, call: Call, model: ServedModel) -> list[PreparedRequest]:
        info = model.engine.model.ranking
        if info is None:
            raise other_use(model.engine.model, "is no reranker", "model_not_reranker")
        wire: PairFields = call.wire
        if wire.cache_salt is not None and info.template == "pair":
            call.ignored = [*call.ignored, "cache_salt"]
        encoder = (FramedPairs if info.template == "pair" else TemplatePairs)(wire, model, info)
        return [
            PreparedRequest(
                prompt_token_ids=pair.token_ids,
                params=SamplingParams(max_tokens=0),
                new_parser=None,
                embedding=EmbeddingParams(num_unpooled=pair.num_first),
            )
            for pair in self.pairs(wire, encoder)
        ]

    @abstractmethod
    def pairs(self, wire: Any, encoder: PairEncoder) -> list[EncodedPair]:
        """Encode the pairs of a request. Raises `APIError` 400."""

    def writer(self, call: Call, head: CompletionHead, reader: AnswerReader) -> ScoreWriter:
        wire: PairFields = call.wire
        return ScoreWriter(head, reader, raw=bool(wire.raw_scores) or wire.use_activation is False)


class RerankEndpoint(PairsEndpoint):
    """Documents in the order of their scores."""

    path = "/v1/rerank"
    wire_type = RerankRequest
    fields = RERANK_FIELDS
    id_prefix = "rerank-"
    prompt_fields = frozenset({"query", "documents"})

    def takes_long(self, call: Call) -> bool:
        return _take_long(len(call.wire.documents), call.wire.query)

    def pairs(self, wire: RerankRequest, encoder: PairEncoder) -> list[EncodedPair]:
        texts = [item if isinstance(item, str) else item.text for item in wire.documents]
        return [encoder.encode(f"documents[{i}]", wire.query, text) for i, text in enumerate(texts)]

    def collector(self, call: Call, head: CompletionHead) -> Collector:
        return RankCollector(head, call.wire)


class ScoreEndpoint(PairsEndpoint):
    """Scores in the order of the pairs."""

    path = "/v1/score"
    wire_type = ScoreRequest
    fields = SCORE_FIELDS
    id_prefix = "score-"
    prompt_fields = frozenset({"text_1", "text_2"})

    def takes_long(self, call: Call) -> bool:
        wire: ScoreRequest = call.wire
        return _take_long(len(_texts(wire.text_2)), max(_texts(wire.text_1), key=len))

    def pairs(self, wire: ScoreRequest, encoder: PairEncoder) -> list[EncodedPair]:
        first, second = _texts(wire.text_1), _texts(wire.text_2)
        if len(first) not in (1, len(second)):
            message = f"text_1 has {len(first)} texts and text_2 {len(second)}; send 1, or as many."
            raise invalid("text_1", message)
        first = first if len(first) > 1 else first * len(second)
        return [
            encoder.encode("text_2" if isinstance(wire.text_2, str) else f"text_2[{i}]", *texts)
            for i, texts in enumerate(zip(first, second, strict=True))
        ]

    def collector(self, call: Call, head: CompletionHead) -> Collector:
        return ScoreCollector(head)


def _take_long(num_pairs: int, question: str) -> bool:
    return num_pairs * (1 + len(question) // LONG_QUESTION) > MANY_PAIRS


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
