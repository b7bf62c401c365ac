"""Sweeps, durations, ramps, speeds alone, and what a run says about itself."""

import asyncio
import csv
import io
from itertools import count
from pathlib import Path
from time import perf_counter

import pytest

from stonechat_server.bench import levels as levels_module
from stonechat_server.bench import load as load_module
from stonechat_server.bench.environment import busy_share, busy_ticks
from stonechat_server.bench.load import Pace, poisson_schedule, run_closed
from stonechat_server.bench.report.page import render_report
from stonechat_server.bench.report.tables import csv_text, latency_rows, markdown, rate_rows
from stonechat_server.bench.report.verdict import knee, percentile, verdict
from stonechat_server.bench.results import BenchResult, LevelResult, RequestRecord, Slo, Speed
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.speeds import answer_speed, prompt_speed
from stonechat_server.bench.summary import quantiles
from stonechat_server.bench.targets.target import Measured
from stonechat_server.bench.targets.workload import Prompt, SyntheticWorkload
from stonechat_server.cli import main

from .conftest import FakeServer


def bench(fake: FakeServer, model: str = "good", **settings: object) -> BenchResult:
    base: dict[str, object] = {"input_tokens": 20, "output_tokens": 4, "warmup": 0}
    values = {**base, "base_url": fake.url, "model": model, **settings}
    return asyncio.run(run_bench(BenchSettings.model_validate(values)))


def level(value: float, speed: float, ttft: float = 0.1, share: float | None = None) -> LevelResult:
    return LevelResult(
        kind="closed", value=value, num_requests=8, num_errors=0, seconds=1.0, prompt_tokens=1,
        completion_tokens=1, cached_tokens=None, tokens_per_second=speed, requests_per_second=1.0,
        repeat_tokens_per_second=[speed], goodput=share, ttft=quantiles([ttft]),
        inter_token=quantiles([0.01]), tpot=quantiles([0.01]), e2e=quantiles([1.0]),
        generator_cpu=0.1, slo_share=share, records=[],
    )  # fmt: skip


def test_a_sweep_doubles_until_the_throughput_is_flat(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {1: 100, 2: 190, 4: 350, 8: 360, 16: 362, 32: 900}

    async def closed(self: object, in_flight: int) -> LevelResult:
        return level(in_flight, speeds[in_flight])

    monkeypatch.setattr(levels_module.Levels, "closed", closed)
    result = bench(fake, sweep=True)
    assert [one.value for one in result.levels] == [1, 2, 4, 8, 16]
    turn = knee(result.levels)
    assert turn is not None
    assert turn.value == 4
    assert "The knee is at 4 in flight: 350 tokens/s" in " ".join(verdict(result))


def test_a_sweep_ends_at_errors(fake: FakeServer) -> None:
    assert [one.value for one in bench(fake, model="cut", sweep=True).levels] == [1]


def test_throughput_sends_all_requests_at_once(fake: FakeServer) -> None:
    result = bench(fake, throughput=True, num_requests=24)
    assert [(one.value, one.num_requests) for one in result.levels] == [(24, 24)]


def test_a_duration_ends_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request starts after it; those that run are waited for."""
    clock = [0.0]
    monkeypatch.setattr(load_module, "perf_counter", lambda: clock[0])
    starts: list[float] = []

    class TakesTwoSeconds:
        async def measure(self, prompt: Prompt, *, origin: float, repeat: int) -> Measured:
            starts.append(clock[0] - origin)
            clock[0] += 2.0
            return Measured(RequestRecord(start=0, sent=0, end=0), [], "")

        def cpu_seconds(self) -> float:
            return 0.0

    words = SyntheticWorkload(4, 0.0, 0)
    server, pace = TakesTwoSeconds(), Pace(duration=5.0)
    run = run_closed(server, words, count(), 1, lambda _: None, pace=pace)  # type: ignore[arg-type]
    assert len(asyncio.run(run).records) == 3
    assert starts == [0.0, 2.0, 4.0]


def test_a_level_of_some_seconds_is_no_number_of_requests(fake: FakeServer) -> None:
    (one,) = bench(fake, concurrency=(2,), duration=0.3).levels
    assert one.num_requests == len(one.records) >= 2


def test_a_ramp_starts_the_requests_one_after_the_other() -> None:
    starts: list[float] = []

    class Waits:
        """A server that answers no request before the fourth has begun."""

        def __init__(self) -> None:
            self.all_began = asyncio.Event()

        async def measure(self, prompt: Prompt, *, origin: float, repeat: int) -> Measured:
            starts.append(perf_counter() - origin)
            if len(starts) == 4:
                self.all_began.set()
            await self.all_began.wait()
            return Measured(RequestRecord(start=0, sent=0, end=0), [], "")

        def cpu_seconds(self) -> float:
            return 0.0

    async def run() -> None:
        words = SyntheticWorkload(4, 0.0, 0)
        await run_closed(Waits(), words, range(4), 4, lambda _: None, pace=Pace(ramp=0.2))  # type: ignore[arg-type]

    asyncio.run(run())
    assert all(start > due - 0.01 for start, due in zip(starts, (0, 0.05, 0.1, 0.15), strict=True))


def test_a_ramp_of_arrivals_has_half_of_them_late() -> None:
    flat = poisson_schedule(100, None, "s", Pace(duration=10))
    ramp = poisson_schedule(100, None, "s", Pace(duration=10, ramp=10))
    assert len(flat) == pytest.approx(1000, rel=0.15)
    assert len(ramp) == pytest.approx(500, rel=0.2)
    assert sum(t > 5 for t in ramp) == pytest.approx(0.75 * len(ramp), rel=0.1)
    assert ramp == sorted(ramp)
    assert poisson_schedule(2, 5, "s") == poisson_schedule(2, 5, "s", Pace())


def test_speeds_are_measured_alone_and_repeated(fake: FakeServer) -> None:
    result = bench(fake, pp=(20, 40), tg=(6,), repeats=3)
    assert [speed.name for speed in result.speeds] == ["pp20", "pp40", "tg6"]
    assert all(len(speed.tokens_per_second) == 3 for speed in result.speeds)
    assert fake.most_in_flight == 1
    assert {body["max_tokens"] for body in fake.bodies} == {1, 6}
    assert all(check.passed for check in result.checks)
    text = markdown(result)
    assert "| test | repeats | tokens/s |" in text
    assert "| pp40 | 3 |" in text
    assert "pp20" in render_report([result])


@pytest.mark.parametrize(
    ("first_token", "num_tokens", "prompt", "answer"),
    [(3.0, 5, 50.0, 2.0), (3.0, 1, 50.0, 0.25), (None, 1, 25.0, 0.25), (None, 8, 25.0, 2.0)],
)
def test_speeds_of_tokens_with_and_without_text(
    first_token: float | None, num_tokens: int, prompt: float, answer: float
) -> None:
    """An answer starts at 1 s and ends at 5 s. Without text, nobody sees the first token."""
    record = RequestRecord(
        start=1.0, sent=1.0, end=5.0, first_token=first_token, prompt_tokens=130, cached_tokens=30,
        completion_tokens=num_tokens,
    )  # fmt: skip
    assert (prompt_speed(record), answer_speed(record)) == (prompt, answer)


def test_a_single_token_may_have_no_text(fake: FakeServer) -> None:
    result = bench(fake, model="silent", pp=(20,), repeats=2)
    assert all(check.passed for check in result.checks)
    assert 0 < result.speeds[0].mean < 1e7


def test_the_mean_and_the_deviation_of_a_speed() -> None:
    speed = Speed(name="tg4", tokens_per_second=[10.0, 12.0, 14.0])
    assert (speed.mean, speed.deviation) == (12.0, 2.0)
    assert Speed(name="tg4", tokens_per_second=[10.0]).deviation == 0.0


def test_answers_without_text_fail_a_check(fake: FakeServer) -> None:
    result = bench(fake, model="silent", concurrency=(1,), num_requests=2)
    failed = [check.name for check in result.checks if not check.passed]
    assert failed == ["every answer held text"]
    assert any("Do not trust" in line for line in verdict(result))


def test_a_percentile_of_few_samples_is_not_a_figure(fake: FakeServer) -> None:
    few, many = quantiles([0.1] * 9), quantiles([0.1] * 100)
    assert percentile(few, "p90") == percentile(few, "p99") == "n too small"
    assert percentile(few, "p50") == pytest.approx(0.1)
    assert percentile(many, "p99") == pytest.approx(0.1)
    result = bench(fake, concurrency=(1,), num_requests=3)
    assert latency_rows(result)[1][4:6] == ["n too small", "n too small"]
    assert "n too small" in render_report([result])


@pytest.mark.parametrize(
    ("shares", "text"),
    [((1.0, 0.95, 0.5), "holds up to 2 in flight"), ((0.5, 0.2, 0.0), "No level holds the SLO")],
)
def test_the_slo_is_judged(fake: FakeServer, shares: tuple[float, ...], text: str) -> None:
    result = bench(fake, concurrency=(1,), num_requests=2)
    result.slo = Slo(ttft=0.5)
    result.levels = [level(2**i, 100.0, share=share) for i, share in enumerate(shares)]
    assert text in " ".join(verdict(result))
    assert "first token ≤ 500 ms" in " ".join(verdict(result))
    assert 'class="bound"' in render_report([result])
    assert "met SLO" in rate_rows(result)[0]


def test_a_busy_machine_is_said(fake: FakeServer) -> None:
    result = bench(fake, concurrency=(1,), num_requests=2)
    result.load_before = 0.9
    assert any("90% of its cores were busy" in line for line in verdict(result))
    result.load_before = 0.1
    assert not any("busy" in line for line in verdict(result))


def test_the_load_of_the_machine() -> None:
    assert busy_share((10, 100), (40, 200)) == pytest.approx(0.3)
    assert busy_share(None, (1, 2)) is None
    ticks = busy_ticks()
    assert ticks is None or 0 <= ticks[0] <= ticks[1]


def test_runs_are_compared_to_the_first(fake: FakeServer) -> None:
    first = bench(fake, concurrency=(1,), num_requests=2, label="a")
    second = bench(fake, concurrency=(1,), num_requests=2, label="b")
    first.levels, second.levels = [level(1, 100.0)], [level(1, 250.0)]
    page = render_report([first, second])
    assert "b / a" in page
    assert "<td>1 in flight, tokens/s</td><td>2.50</td>" in page


def test_markdown_and_csv_files(fake: FakeServer, tmp_path: Path) -> None:
    md, table = tmp_path / "a.md", tmp_path / "a.csv"
    flags = ["--base-url", fake.url, "--model", "good", "--requests", "3", "--output-tokens", "4"]
    files = ["--markdown", str(md), "--csv", str(table), "--quiet"]
    assert main(["bench", *flags, "--concurrency", "1,2", *files]) == 0
    assert "| 1 in flight | 3 | 0 |" in md.read_text()
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["value"] for row in rows] == ["1", "2"]
    assert float(rows[0]["ttft_p50"]) > 0
    assert rows[0]["ttft_p99"] == ""


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--sweep", "--rate", "1"], "--rate and --sweep"),
        (["--throughput", "--pp", "8"], "--throughput and --pp and --tg"),
        (["--duration", "5", "--requests", "3"], "--duration and --requests"),
        (["--duration", "5", "--throughput"], "no meaning with --throughput"),
    ],
)
def test_loads_that_exclude_each_other(
    flags: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *flags])
    assert text in capsys.readouterr().err


def test_csv_has_the_speeds(fake: FakeServer) -> None:
    result = bench(fake, tg=(4,), repeats=2)
    assert csv_text(result).splitlines()[1].startswith("good,speed,tg4,2,0,")
