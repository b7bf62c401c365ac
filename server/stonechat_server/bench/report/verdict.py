"""What a run says in words: where the server saturates, whether it met the SLO, what to doubt."""

from collections.abc import Sequence

from stonechat_server.bench.results import BenchResult, LevelResult, Quantiles, Slo

KNEE_SHARE = 0.9
"""The knee is the lowest load that reaches this share of the highest throughput."""
SLO_SHARE = 0.9
"""A level holds an SLO if this share of its requests meets all bounds."""
QUIET = 0.25
"""A machine whose cores are busier than this before a run is not quiet."""
SAMPLES = {"p90": 10, "p99": 100}
"""The least number of samples of a percentile: with fewer it is just the largest value."""


def knee(levels: Sequence[LevelResult]) -> LevelResult | None:
    """The level from which on more load brings little; None with fewer than three levels."""
    if len(levels) < 3:
        return None
    best = max(level.tokens_per_second for level in levels)
    ordered = sorted(levels, key=lambda level: level.value)
    return next(level for level in ordered if level.tokens_per_second >= KNEE_SHARE * best)


def percentile(values: Quantiles, name: str) -> float | str | None:
    """A percentile, or a text if there are too few samples for it."""
    if values.count is not None and 0 < values.count < SAMPLES.get(name, 1):
        return "n too small"
    value: float | None = getattr(values, name)
    return value


def slo_text(slo: Slo) -> str:
    """The bounds of an SLO, in milliseconds."""
    bounds = {"first token": slo.ttft, "a token": slo.tpot, "end to end": slo.e2e}
    return ", ".join(f"{n} ≤ {value * 1000:g} ms" for n, value in bounds.items() if value)


def verdict(result: BenchResult) -> list[str]:
    """Sum a measurement up in a few sentences. They stand at the head of the report."""
    lines = [f"{s.name}: {s.mean:,.1f} ± {s.deviation:,.1f} tokens/s" for s in result.speeds]
    if (found := result.perplexity) is not None:
        lines.append(
            f"Perplexity {found.value:,.3f} ± {found.error:,.3f} on {found.text}: "
            f"{found.num_counted:,} tokens, in windows of {found.context:,} with a stride of "
            f"{found.stride:,}."
        )
    if result.levels:
        best = max(result.levels, key=lambda level: level.tokens_per_second)
        lines.append(f"At most {best.tokens_per_second:,.0f} tokens/s, at {best.name}.")
    turn = knee(result.levels)
    if turn is not None:
        lines.append(
            f"The knee is at {turn.name}: {turn.tokens_per_second:,.0f} tokens/s, first token "
            f"after {(turn.ttft.p50 or 0) * 1000:,.0f} ms (median)."
        )
    lines += _image_lines(result.levels)
    lines += _slo_lines(result)
    if result.in_process and result.perplexity is None:
        lines.append("Measured without a server: no HTTP is in these figures.")
    failed = [check.name for check in result.checks if not check.passed]
    if failed:
        lines.append(f"Do not trust these figures: it does not hold that {'; '.join(failed)}.")
    if result.perplexity is None and result.load_before is not None and result.load_before > QUIET:
        lines.append(
            f"The machine was not quiet: {result.load_before:.0%} of its cores were busy before "
            "the run. The figures may be too low."
        )
    return lines


def _image_lines(levels: Sequence[LevelResult]) -> list[str]:
    seen = [level for level in levels if level.num_images]
    if not seen:
        return []
    best = max(seen, key=lambda level: level.images_per_second)
    first, *_ = seen
    kinds = (("new", first.ttft_new_images), ("cached", first.ttft_cached_images))
    times = [f"{q.p50 * 1000:,.0f} ms with {name} images" for name, q in kinds if q.p50 is not None]
    ttft = f" First token at {first.name}: {', '.join(times)} (median)." if times else ""
    return [f"At most {best.images_per_second:,.2f} images/s, at {best.name}.{ttft}"]


def _slo_lines(result: BenchResult) -> list[str]:
    if result.slo is None or not result.levels:
        return []
    held = [level for level in result.levels if (level.slo_share or 0.0) >= SLO_SHARE]
    bounds = slo_text(result.slo)
    if not held:
        return [f"No level holds the SLO ({bounds}) for {SLO_SHARE:.0%} of its requests."]
    most = max(held, key=lambda level: level.value)
    return [
        f"The SLO ({bounds}) holds up to {most.name}: {most.slo_share:.0%} of the requests meet it."
    ]
