"""What clients of `POST /v1/embeddings` receive."""

from typing import Literal

import msgspec


class EmbeddingItem(msgspec.Struct, kw_only=True):
    """The embedding of one input: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    """Which input it is of."""
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """The tokens of all inputs. `total_tokens` is the same number."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The embeddings in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[EmbeddingItem]
    usage: EmbeddingUsage
