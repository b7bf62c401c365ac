"""The body of `POST /v1/batches`."""

from typing import Annotated, Literal

from pydantic import Field

from stonechat_server.schema.base import WireModel
from stonechat_server.schema.sampling_fields import Metadata, Whole

WINDOW_SECONDS = {"24h": 86_400}


class ExpiresAfter(WireModel):
    """How long the files of results are kept, from the time at which they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[Whole, Field(ge=3600, le=2_592_000)]


class BatchRequest(WireModel):
    """A file of requests to run, and the endpoint that they are for."""

    input_file_id: str
    endpoint: Literal[
        "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank"
    ]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None
