"""Result files, the report and the command."""

import asyncio
import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from stonechat_server.bench.report.page import render_report
from stonechat_server.bench.results import BenchResult, Slo, read_json, write_json
from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.selftest import REQUIRED_TOKENS_PER_SECOND, measure_generator
from stonechat_server.bench.settings import BenchSettings
from stonechat_server.bench.summary import quantiles
from stonechat_server.cli import main

from .conftest import FakeServer


@pytest.fixture
def result(fake: FakeServer) -> BenchResult:
    settings = BenchSettings(
        base_url=fake.url, model="good", concurrency=(1, 4), num_requests=4, output_tokens=6,
        input_tokens=20, label="<b>mine</b>", warmup=0,
    )  # fmt: skip
    return asyncio.run(run_bench(settings))


def test_a_result_survives_its_file(result: BenchResult) -> None:
    assert read_json(write_json(result)) == result


@pytest.mark.parametrize("data", [b"{}", b"nonsense"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a benchmark result"):
        read_json(data)


def test_the_report_is_self_contained_and_escapes_labels(result: BenchResult) -> None:
    page = render_report([result, result])
    assert "<b>mine</b>" not in page
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(|src=", page)
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 2 + 2 * 2 + 2 * 2  # sweeps, distributions, timelines
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "nan" not in chart
    tables = page.split("<h2>Figures</h2>")[1].split("<h2>Distributions</h2>")[0]
    assert tables.count("<tr><td>") == 2 * (2 + 2 * 4)  # rates, and four latencies a level


def test_every_bound_of_the_slo_is_drawn(result: BenchResult) -> None:
    bounded = msgspec.structs.replace(result, slo=Slo(ttft=0.5, tpot=0.1, e2e=2.0))
    page = render_report([bounded])
    charts = {
        name: chart
        for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL)
        for name in re.findall(r'aria-label="(.*?)"', chart)
    }
    drawn = {name for name, chart in charts.items() if 'class="bound"' in chart}
    assert drawn == {
        *("tokens/s against TTFT p50 (ms)", "tokens/s against time per output token p50 (ms)"),
        *(f"distribution of {time} (ms), {load} in flight" for load in (1, 4)
          for time in ("time to first token", "time per output token", "time to the end")),
    }  # fmt: skip


def test_a_model_that_is_a_file_is_named_without_its_folder(result: BenchResult) -> None:
    page = render_report([msgspec.structs.replace(result, model="/home/me/m.gguf")])
    assert "<p>m.gguf, " in page


def test_quantiles_equal_numpys() -> None:
    values = list(np.random.default_rng(0).exponential(size=501))
    summary = quantiles(values)
    assert summary.p90 == pytest.approx(np.quantile(values, 0.9))
    assert summary.p99 == pytest.approx(np.quantile(values, 0.99))
    assert len(summary.curve) == 101


def test_the_command_writes_its_files(
    fake: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file, html_file = tmp_path / "a.json", tmp_path / "a.html"
    common = ["--base-url", fake.url, "--requests", "3", "--output-tokens", "4"]
    flags = [*common, "--model", "good", "--concurrency", "1,2", "--json", str(json_file)]
    assert main(["bench", *flags, "--html", str(html_file), "--slo", "ttft=5000"]) == 0
    output = capsys.readouterr().out
    assert "2 in flight" in output
    assert "every stream ended with [DONE]" in output
    assert len(read_json(json_file.read_bytes()).levels) == 2
    assert "<svg" in html_file.read_text()
    report_flags = ["--report-only", "--compare", str(json_file), str(json_file)]
    assert main(["bench", *report_flags, "--html", str(html_file)]) == 0
    assert main(["bench", *common, "--model", "no-done", "--concurrency", "1", "--quiet"]) == 1
    assert main(["bench", "--base-url", "http://127.0.0.1:9", "--quiet"]) == 1
    assert "no server answers" in capsys.readouterr().err


def test_the_load_generator_is_fast_enough() -> None:
    speed = measure_generator(num_requests=32)
    assert speed.tokens_per_core_second > REQUIRED_TOKENS_PER_SECOND
