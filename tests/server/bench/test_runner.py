"""Benchmark runs against a scripted server that speaks real HTTP."""

import asyncio
from itertools import pairwise

import pytest

from stonechat_server.bench.results import BenchResult, Slo
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.targets.target import BenchError
from stonechat_server.bench.validity import run_checks

from .conftest import FakeServer, count_words

GENERATOR_CHECK = "the load generator was not the bottleneck"


def bench(fake: FakeServer, model: str, **changes: object) -> BenchResult:
    fields: dict[str, object] = {
        "base_url": fake.url, "model": model, "concurrency": (3,), "num_requests": 6,
        "input_tokens": 40, "output_tokens": 8, "warmup": 1, **changes,
    }  # fmt: skip
    return asyncio.run(run_bench(BenchSettings(**fields)))  # type: ignore[arg-type]


def failed(result: BenchResult) -> set[str]:
    """The fake server takes no time, so on a busy machine the load generator may be the slower."""
    names = {check.name for check in result.checks if not check.passed}
    return names - {GENERATOR_CHECK}


def test_a_good_server_passes_every_check(fake: FakeServer) -> None:
    result = bench(fake, "good", repeats=2)
    (level,) = result.levels
    assert failed(result) == set()
    assert level.num_requests == 12
    assert level.num_errors == 0
    assert level.completion_tokens == 12 * 8
    assert level.cached_tokens == 12 * 20
    assert fake.most_in_flight == 3
    assert len(level.repeat_tokens_per_second) == 2
    assert level.tokens_per_second == pytest.approx(96 / level.seconds)
    assert result.server["dtype"] == "bfloat16"


@pytest.mark.parametrize(("busy", "is_valid"), [(0.84, True), (0.86, False)])
def test_a_load_generator_that_is_too_busy_is_named(busy: float, is_valid: bool) -> None:
    check = run_checks([], [0.1, busy])[-1]
    assert check.name == GENERATOR_CHECK
    assert check.passed is is_valid


def test_prompts_have_the_requested_length_and_never_repeat(fake: FakeServer) -> None:
    result = bench(fake, "good")
    assert {record.prompt_tokens for record in result.levels[0].records} == {40}
    texts = [str(body["messages"]) for body in fake.bodies if body["max_tokens"] == 8]
    assert len(texts) == len(set(texts)) == 7  # 6 measured, and 1 to warm up


def test_latencies_are_those_of_the_server(fake: FakeServer) -> None:
    fake.token_seconds = 0.02
    try:
        (level,) = bench(fake, "good", concurrency=(1,), num_requests=2).levels
    finally:
        fake.token_seconds = 0.001
    assert level.ttft.p50 is not None
    assert level.inter_token.p50 is not None
    assert level.e2e.p50 is not None
    assert level.ttft.p50 > 0.018
    assert level.inter_token.p50 > 0.018
    assert level.e2e.p50 > 0.15
    assert level.tokens_per_second < 8 / 0.15


@pytest.mark.parametrize(
    ("model", "check"),
    [
        ("no-done", "every stream ended with [DONE]"),
        ("no-usage", "every stream stated its usage"),
        ("ends-early", "every answer has the tokens asked for"),
        ("greedy", "no stream had more chunks of text than tokens"),
        ("error-event", "every request was answered"),
        ("cut", "every request was answered"),
    ],
)
def test_a_faulty_server_fails_the_check_that_names_the_fault(
    fake: FakeServer, model: str, check: str
) -> None:
    prompts = {"prompts_file": None}
    assert check in failed(bench(fake, model, **prompts))


def test_a_refused_field_is_left_out_and_noted(fake: FakeServer) -> None:
    result = bench(fake, "refuses")
    assert failed(result) == set()
    assert result.notes == ["the server refused `ignore_eos`, so it was not sent"]
    assert all("ignore_eos" not in body for body in fake.bodies[-7:])


def test_a_server_that_cannot_be_used_ends_the_run(fake: FakeServer) -> None:
    with pytest.raises(BenchError, match="no luck"):
        bench(fake, "fails")
    with pytest.raises(BenchError, match="no server answers"):
        bench(fake, "good", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(BenchError, match="too short"):
        bench(fake, "good", input_tokens=3)


def test_the_common_prefix_has_its_share(fake: FakeServer) -> None:
    bench(fake, "good", input_tokens=107, prefix_share=0.5)
    texts = [
        body["messages"][0]["content"].split()  # type: ignore[index]
        for body in fake.bodies
        if body["max_tokens"] == 8
    ]
    for first, second in pairwise(texts):
        common = next(i for i, pair in enumerate(zip(first, second)) if pair[0] != pair[1])
        assert 50 <= common <= 53
    assert count_words(fake.bodies[-1]["messages"]) == 107  # type: ignore[arg-type]


def test_an_open_loop_keeps_its_schedule(fake: FakeServer) -> None:
    result = bench(fake, "good", rates=(60.0,), num_requests=40, output_tokens=30)
    (level,) = result.levels
    assert failed(result) == set()
    starts = sorted(record.start for record in level.records)
    assert 0.3 < starts[-1] < 1.5  # 40 arrivals at 60 per second
    assert fake.most_in_flight > 1  # requests did not wait for one another
    again = bench(fake, "good", rates=(60.0,), num_requests=40).levels[0]
    assert sorted(r.start for r in again.records) == pytest.approx(starts, abs=1e-6)


def test_goodput_counts_requests_that_meet_the_slo(fake: FakeServer) -> None:
    loose = bench(fake, "good", slo=Slo(ttft=10.0, tpot=10.0)).levels[0]
    tight = bench(fake, "good", slo=Slo(e2e=1e-6)).levels[0]
    assert loose.goodput == pytest.approx(loose.requests_per_second)
    assert tight.goodput == 0.0


def test_the_roofline_uses_the_servers_weight_size(fake: FakeServer) -> None:
    result = bench(fake, "good", roofline=True)
    assert result.roofline is not None
    assert result.roofline.weight_bytes == 50_000_000
    assert result.roofline.bandwidth > 1e9
    level = result.levels[0]
    assert level.tpot.p50 is not None
    expected = 50_000_000 / level.tpot.p50 / result.roofline.bandwidth
    assert level.roofline_share == pytest.approx(expected)


def test_a_roofline_without_a_weight_size_ends_the_run_before_it_starts(fake: FakeServer) -> None:
    with pytest.raises(BenchError, match="weight size"):
        bench(fake, "no-facts", roofline=True)
    assert all(body["max_tokens"] == 1 for body in fake.bodies)
    result = bench(fake, "no-facts", roofline=True, weight_bytes=1_000_000)
    assert result.roofline is not None
    assert result.roofline.source == "--weight-bytes"
