"""Computes the figures of a level from its records: quantiles, rates, goodput."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from stonechat_server.bench.results import LevelResult, Quantiles, RequestRecord, Slo


def quantiles(values: Sequence[float]) -> Quantiles:
    """Linear-interpolated quantiles of `values`."""
    if not values:
        return Quantiles()
    array = np.asarray(values, dtype=np.float64)
    curve = [float(value) for value in np.percentile(array, np.arange(101))]
    return Quantiles(
        count=len(values),
        mean=float(array.mean()),
        deviation=float(array.std(ddof=1)) if len(values) > 1 else 0.0,
        p50=curve[50],
        p90=curve[90],
        p99=curve[99],
        max=curve[100],
        curve=[round(value, 6) for value in curve],
    )


def meets_slo(record: RequestRecord, slo: Slo) -> bool:
    """Whether the request was answered and met every bound that is set."""
    if record.error is not None or record.ttft is None:
        return False
    within_ttft = slo.ttft is None or record.ttft <= slo.ttft
    within_e2e = slo.e2e is None or record.e2e <= slo.e2e
    within_tpot = slo.tpot is None or (record.tpot or 0.0) <= slo.tpot
    return within_ttft and within_e2e and within_tpot


def summarise(
    kind: Literal["closed", "open"],
    value: float,
    repeats: Sequence[Sequence[RequestRecord]],
    gaps: Sequence[float],
    generator_cpu: float,
    machine_load: float | None,
    slo: Slo | None,
) -> LevelResult:
    """The figures of one level. A repeat lasts from its first start to its last end."""
    records = [record for repeat in repeats for record in repeat]
    good = [record for record in records if record.error is None]
    spans = [_span(repeat) for repeat in repeats]
    seconds = sum(spans)
    num_tokens = sum(record.completion_tokens for record in good)
    num_met = None if slo is None else sum(meets_slo(record, slo) for record in records)
    cached_counts = [record.cached_tokens for record in good if record.cached_tokens is not None]
    image_counts = [record.image_tokens for record in good if record.image_tokens is not None]
    return LevelResult(
        kind=kind,
        value=value,
        num_requests=len(records),
        num_errors=len(records) - len(good),
        seconds=seconds,
        prompt_tokens=sum(record.prompt_tokens for record in good),
        completion_tokens=num_tokens,
        cached_tokens=sum(cached_counts) if cached_counts else None,
        tokens_per_second=num_tokens / seconds,
        requests_per_second=len(good) / seconds,
        repeat_tokens_per_second=[
            sum(r.completion_tokens for r in repeat if r.error is None) / span
            for repeat, span in zip(repeats, spans)
        ],
        goodput=None if num_met is None else num_met / seconds,
        slo_share=None if num_met is None else num_met / len(records),
        ttft=_ttft(good),
        inter_token=quantiles(gaps),
        tpot=quantiles([record.tpot for record in good if record.tpot is not None]),
        e2e=quantiles([record.e2e for record in good]),
        num_images=sum(record.num_images for record in good),
        image_tokens=sum(image_counts) if image_counts else None,
        ttft_new_images=_ttft(good, False),
        ttft_cached_images=_ttft(good, True),
        generator_cpu=generator_cpu,
        machine_load=machine_load,
        records=records,
    )


def _ttft(records: Sequence[RequestRecord], has_cached_images: bool | None = None) -> Quantiles:
    """The times to the first token: of all records, or of those with or without cached images."""
    chosen = [record for record in records if has_cached_images in (None, record.has_cached_images)]
    return quantiles([record.ttft for record in chosen if record.ttft is not None])


def _span(records: Sequence[RequestRecord]) -> float:
    start = min(record.start for record in records)
    return max(max(record.end for record in records) - start, 1e-9)
