"""One line of the ledger."""

import msgspec


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one request used. Durations are in seconds.

    `prompt` and `completion` are present only with the setting `ledger_text`.
    """

    id: str
    """Unique and made by the server: a client may send the same `request_id` twice."""
    created: float
    """Arrival, in seconds since 1970."""
    request_id: str
    key: str
    model: str
    endpoint: str = ""
    user: str | None = None
    safety_identifier: str | None = None
    status: int = 200
    """The HTTP status; 499 if the client disconnected first."""
    error_code: str | None = None
    stream: bool = False
    num_choices: int = 1
    """The choices for each prompt."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: str = ""
    """One entry per choice, joined by commas in the order of the choices; of more than 128 choices,
    each reason with its count, as `stop*200`. Embeddings have one entry in all."""
    queue_seconds: float | None = None
    first_token_seconds: float | None = None
    total_seconds: float = 0.0
    prompt: str | None = None
    completion: str | None = None
