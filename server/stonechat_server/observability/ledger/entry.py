"""One line of the ledger."""

import msgspec


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request used. Times are in seconds; texts are there only if asked for."""

    id: str
    """Unique, and ours: a client may send the same request id twice."""
    created: float
    """Arrival, in seconds since 1970."""
    request_id: str
    key: str
    model: str
    endpoint: str = ""
    user: str | None = None
    safety_identifier: str | None = None
    status: int = 200
    """The HTTP status; 499 when the client went away first."""
    error_code: str | None = None
    stream: bool = False
    num_choices: int = 1
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: str = ""
    """One a choice, joined by commas in order of the index."""
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    prompt: str | None = None
    completion: str | None = None
