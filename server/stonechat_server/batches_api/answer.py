"""What clients of `/v1/batches` receive."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from stonechat_server.batches_api.check import Problem
from stonechat_server.storage.tables import StoredBatch

Time = int | UnsetType
"""Seconds since 1970; absent if it has not happened."""


class ProblemList(msgspec.Struct, kw_only=True):
    """What is wrong with the input of a batch that failed."""

    object: Literal["list"] = "list"
    data: list[Problem]


class RequestCounts(msgspec.Struct, kw_only=True):
    """Requests of the input, those answered with success, and those that failed."""

    total: int
    completed: int
    failed: int


class CachedTokens(msgspec.Struct, kw_only=True):
    """Of the input tokens, those read from the prefix cache."""

    cached_tokens: int


class ReasoningTokens(msgspec.Struct, kw_only=True):
    """Of the output tokens, those of reasoning."""

    reasoning_tokens: int


class BatchUsage(msgspec.Struct, kw_only=True):
    """The tokens of all answers with success."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class Batch(msgspec.Struct, kw_only=True):
    """A batch. Its files of results are named once it has ended."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | UnsetType = UNSET
    errors: ProblemList | UnsetType = UNSET
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | UnsetType = UNSET
    error_file_id: str | UnsetType = UNSET
    created_at: int
    in_progress_at: Time = UNSET
    expires_at: Time = UNSET
    finalizing_at: Time = UNSET
    completed_at: Time = UNSET
    failed_at: Time = UNSET
    expired_at: Time = UNSET
    cancelling_at: Time = UNSET
    cancelled_at: Time = UNSET
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None = None


class BatchList(msgspec.Struct, kw_only=True):
    """A page of batches. The ids are empty if it has none."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str
    last_id: str
    has_more: bool


def batch_object(batch: StoredBatch) -> Batch:
    """What clients see of a batch."""
    problems = batch.problems
    names = [name for name in StoredBatch.__dataclass_fields__ if name.endswith("_at")]
    times = {name: value for name in names if (value := getattr(batch, name)) is not None}
    return Batch(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model or UNSET,
        errors=UNSET
        if problems is None
        else ProblemList(data=msgspec.json.decode(problems, type=list[Problem])),
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        output_file_id=batch.output_id if batch.has_output else UNSET,
        error_file_id=batch.errors_id if batch.has_errors else UNSET,
        created_at=int(batch.created),
        **times,
        request_counts=RequestCounts(
            total=batch.num_total, completed=batch.num_completed, failed=batch.num_failed
        ),
        usage=BatchUsage(
            input_tokens=batch.input_tokens,
            input_tokens_details=CachedTokens(cached_tokens=batch.cached_tokens),
            output_tokens=batch.output_tokens,
            output_tokens_details=ReasoningTokens(reasoning_tokens=batch.reasoning_tokens),
            total_tokens=batch.input_tokens + batch.output_tokens,
        ),
        metadata=None
        if batch.metadata is None
        else msgspec.json.decode(batch.metadata, type=dict[str, str]),
    )
