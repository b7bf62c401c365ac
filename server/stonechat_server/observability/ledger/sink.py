"""Records finished requests in the ledger."""

import uuid

from stonechat_server.admission.records import FinishedRequest
from stonechat_server.observability.ledger import Ledger, LedgerEntry

MAX_USER_LENGTH = 256
"""Longer values of `user` and `safety_identifier` are cut to this many characters."""


def record_in(ledger: Ledger, record: FinishedRequest) -> None:
    """Record a request in the ledger."""
    ledger.record(to_entry(record))


def to_entry(record: FinishedRequest) -> LedgerEntry:
    """The ledger entry of a request."""
    timings = record.timings
    scheduled_at = timings.scheduled if timings else None
    first_token = timings.first_token if timings else None
    return LedgerEntry(
        id=uuid.uuid4().hex,
        created=record.created,
        request_id=record.request_id,
        key=record.key,
        model=record.model,
        endpoint=record.endpoint,
        user=_clean(record.user),
        safety_identifier=_clean(record.safety_identifier),
        status=record.status,
        error_code=record.error_code,
        stream=record.stream,
        num_choices=record.num_choices,
        prompt_tokens=record.num_prompt_tokens,
        cached_tokens=record.num_cached_tokens,
        completion_tokens=record.num_completion_tokens,
        finish_reasons=",".join(record.listed_reasons),
        queue_seconds=None if scheduled_at is None else max(0.0, scheduled_at - record.started),
        first_token_seconds=None if first_token is None else first_token - record.started,
        total_seconds=record.finished - record.started,
        prompt=_clean(record.prompt, None),
        completion=_clean(record.completion, None),
    )


def _clean(text: str | None, max_length: int | None = MAX_USER_LENGTH) -> str | None:
    """The text as every database can store it: cut to length, no NUL, no unpaired surrogate."""
    if text is None:
        return None
    return text[:max_length].encode("utf-8", "replace").decode().replace("\0", "\ufffd")
