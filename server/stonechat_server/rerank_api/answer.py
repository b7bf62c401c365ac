"""What clients of `POST /v1/rerank` and `POST /v1/score` receive."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class RerankUsage(msgspec.Struct, kw_only=True):
    """The tokens of all pairs. `total_tokens` is the same number."""

    prompt_tokens: int
    total_tokens: int


class RankedDocument(msgspec.Struct, kw_only=True):
    """A document, and how well it answers the question."""

    index: int
    """Which document of the request it is."""
    relevance_score: float
    document: dict[str, Any] | UnsetType = UNSET
    """The document as the request has it; a text is the field `text`."""


class RerankAnswer(msgspec.Struct, kw_only=True):
    """The documents, the best first."""

    id: str
    object: Literal["list"] = "list"
    model: str
    usage: RerankUsage
    results: list[RankedDocument]


class PairScore(msgspec.Struct, kw_only=True):
    """The score of one pair."""

    object: Literal["score"] = "score"
    index: int
    score: float


class ScoreList(msgspec.Struct, kw_only=True):
    """The scores in the order of the pairs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: RerankUsage
