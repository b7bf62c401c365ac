"""What is said of a model that cannot be loaded, and when it is tried again."""

from collections.abc import Sequence

from stonechat_server.admission.refusals import retry_after_header
from stonechat_server.catalog.entry import Entry, State
from stonechat_server.errors import APIError

FIRST_DELAY_SECONDS = 5.0
MAX_DELAY_SECONDS = 300.0
HEALTHY_SECONDS = 600.0
"""A model that has run for this long starts anew with its failures."""


def load_failed(entry: Entry, reason: str) -> APIError:
    """A 503 with the reason why a load failed."""
    message = f"The model '{entry.name}' could not be loaded: {reason}"
    return _error(message, "model_load_failed")


def not_together(names: Sequence[str]) -> APIError:
    """Says that models that are to be loaded at start made room for others of them."""
    return _error(
        f"The models with load_at_start do not fit the memory budget together: {', '.join(names)} "
        "had to make room again. Give them smaller KV caches (kv_cache_size), raise "
        "--memory-budget, or load fewer at start.",
        "model_load_failed",
    )


def crashed(entry: Entry) -> APIError:
    """A 503 that says that the engine of a model has ended by itself."""
    return _error(f"The engine of the model '{entry.name}' has crashed.", "engine_dead")


def _error(message: str, code: str) -> APIError:
    return APIError(503, message, type="server_error", param="model", code=code)


def note_failure(entry: Entry, error: APIError, now: float) -> None:
    """Keep the error for requests that come before the next try.

    The first crash of a model that has run is tried again at once. Otherwise the time until the
    next try doubles with each failure.
    """
    if entry.state is State.LOADED and now - entry.loaded_at > HEALTHY_SECONDS:
        entry.num_failures = 0
    is_first_crash = entry.state is State.LOADED and entry.num_failures == 0
    entry.num_failures += 1
    entry.num_all_failures += 1
    delay = 0.0
    if not is_first_crash:
        delay = min(FIRST_DELAY_SECONDS * 2.0 ** (entry.num_failures - 1), MAX_DELAY_SECONDS)
    entry.state, entry.error, entry.retry_at = State.FAILED, error, now + delay


def kept_error(entry: Entry, now: float) -> APIError:
    """The error of a model that has failed, with the seconds until it is tried again."""
    assert entry.error is not None
    rest = max(1.0, entry.retry_at - now)
    error = entry.error
    dot = "" if error.message[-1:] in ".?!" else "."
    return APIError(
        error.status,
        f"{error.message}{dot} It is tried again in {rest:.0f} s.",
        type=error.type,
        param=error.param,
        code=error.code,
        headers=retry_after_header(rest),
    )
