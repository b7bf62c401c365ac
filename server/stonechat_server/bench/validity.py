"""The benchmark's self-checks: its figures are valid only if every stream was correct."""

from collections.abc import Callable, Sequence

from stonechat_server.bench.results import Check, RequestRecord

GENERATOR_LIMIT = 0.85
"""Above this share of one core the load generator may be the bottleneck."""


def run_checks(
    records: Sequence[RequestRecord], generator_cpu: Sequence[float], *, over_http: bool = True
) -> list[Check]:
    """Check all records of a run, and the shares of a core that the load generator used."""
    good_records = [record for record in records if record.error is None]
    exact = [record for record in good_records if record.expected_tokens is not None]
    checks = [
        _check("every request was answered", records, lambda r: r.error is None),
        _check(
            "every stream gave a finish_reason", good_records, lambda r: r.finish_reason is not None
        ),
        _check(
            "no stream had more chunks of text than tokens",
            [record for record in good_records if record.usage_stated],
            lambda r: r.num_chunks <= r.completion_tokens,
        ),
        _check(
            "every answer has the tokens asked for",
            exact,
            lambda r: r.completion_tokens == r.expected_tokens,
        ),
    ]
    if over_http:
        checks += [
            _check("every stream ended with [DONE]", good_records, lambda r: r.done),
            _check("every stream stated its usage", good_records, lambda r: r.usage_stated),
        ]
    checks.append(
        _check(
            "every answer held text",
            # A single token may have none: it ends the answer, or is a part of a character.
            [r for r in good_records if r.completion_tokens > 1 and r.num_characters is not None],
            lambda r: bool(r.num_characters),
        )
    )
    busiest = max(generator_cpu, default=0.0)
    checks.append(
        Check(
            name="the load generator was not the bottleneck",
            passed=busiest < GENERATOR_LIMIT,
            detail=f"at most {busiest:.0%} of one core",
        )
    )
    return checks


def _check(
    name: str, records: Sequence[RequestRecord], holds: Callable[[RequestRecord], bool]
) -> Check:
    num_failed = sum(not holds(record) for record in records)
    return Check(
        name=name,
        passed=num_failed == 0,
        detail=f"{len(records) - num_failed} of {len(records)}" if records else "none to check",
    )
