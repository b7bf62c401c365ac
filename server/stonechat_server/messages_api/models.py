"""The list of models in Anthropic's shape."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec


class ModelInfo(msgspec.Struct, kw_only=True, tag_field="type", tag="model"):
    """A name that requests may use as `model`."""

    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelPage(msgspec.Struct, kw_only=True):
    """The only page of the list."""

    data: Sequence[ModelInfo]
    has_more: Literal[False] = False
    first_id: str | None
    last_id: str | None


def model_info(name: str, created: int, max_model_len: int) -> ModelInfo:
    """Describe one model. `created` is in seconds since 1970."""
    return ModelInfo(
        id=name,
        display_name=name,
        created_at=datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        max_input_tokens=max_model_len,
        max_tokens=max_model_len,
    )


def model_page(models: Sequence[ModelInfo]) -> ModelPage:
    """The list of these models."""
    first_id = models[0].id if models else None
    return ModelPage(data=models, first_id=first_id, last_id=models[-1].id if models else None)
