"""Makes the answers of the engine's outputs: a score per pair, then all of them."""

import struct

from msgspec import UNSET

from stonechat_server.rerank_api.answer import (
    PairScore,
    RankedDocument,
    RerankAnswer,
    RerankUsage,
    ScoreList,
)
from stonechat_server.rerank_api.request import RerankRequest
from stonechat_server.streaming.answer_reader import AnswerReader, Piece
from stonechat_server.streaming.answer_writer import AnswerWriter, CompletionHead, Event


class ScoreWriter(AnswerWriter):
    """Makes a `PairScore` of each output, and the usage at the end."""

    joins = False

    def __init__(self, head: CompletionHead, reader: AnswerReader, *, raw: bool) -> None:
        """With `raw`, scores are the model's own numbers."""
        super().__init__(head, reader)
        self._raw = raw

    def write(self, piece: Piece) -> list[Event]:
        if piece.finish_reason is None:
            return []
        score, number = struct.unpack("<2f", self.reader.embedding_of(piece.index))
        return [PairScore(index=piece.index, score=number if self._raw else score)]

    def end(self) -> list[Event]:
        num_tokens = self.reader.usage().num_prompt
        return [RerankUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)]


class ScoreCollector:
    """Collects scores. Its answer has them in the order of the pairs."""

    def __init__(self, head: CompletionHead) -> None:
        self._head = head
        self._scores: list[PairScore] = []
        self._usage = RerankUsage(prompt_tokens=0, total_tokens=0)

    def add(self, event: Event) -> None:
        if isinstance(event, RerankUsage):
            self._usage = event
        else:
            self._scores.append(event)

    def answer(self) -> ScoreList | RerankAnswer:
        return ScoreList(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            data=sorted(self._scores, key=lambda score: score.index),
            usage=self._usage,
        )


class RankCollector(ScoreCollector):
    """Puts the documents in the order of their scores."""

    def __init__(self, head: CompletionHead, request: RerankRequest) -> None:
        super().__init__(head)
        self._request = request

    def answer(self) -> RerankAnswer:
        best = sorted(self._scores, key=lambda score: (-score.score, score.index))
        return RerankAnswer(
            id=self._head.id,
            model=self._head.model,
            results=[self._ranked(score) for score in best[: self._request.top_n or None]],
            usage=self._usage,
        )

    def _ranked(self, score: PairScore) -> RankedDocument:
        document = self._request.documents[score.index]
        given = {"text": document} if isinstance(document, str) else document.model_dump()
        is_shown = self._request.return_documents is not False
        return RankedDocument(
            index=score.index,
            relevance_score=score.score,
            document=given if is_shown else UNSET,
        )
