"""Runs the benchmark on a real server: its checks pass, and its counts agree."""

import asyncio

from stonechat_server.bench.runner import run_bench
from stonechat_server.bench.settings import BenchSettings

from .conftest import LiveServer


def test_every_check_passes_and_the_counts_agree(server: LiveServer) -> None:
    settings = BenchSettings(
        base_url=server.url,
        concurrency=(1, 4),
        num_requests=4,
        input_tokens=96,
        output_tokens=12,
        prefix_share=0.5,
        warmup=1,
        roofline=True,
    )
    result = asyncio.run(run_bench(settings))
    failed_checks = {check.name for check in result.checks if not check.passed}
    # Server and load generator share this process here, and the machine may be busy.
    assert failed_checks <= {"the load generator was not the bottleneck"}
    assert result.notes == []
    assert result.roofline is not None
    assert result.roofline.weight_bytes == result.server["weight_bytes"]
    for level in result.levels:
        assert level.completion_tokens == 4 * 12
        lengths = {record.prompt_tokens for record in level.records}
        assert all(abs(length - 96) <= 5 for length in lengths)
        assert level.cached_tokens is not None
        # The cached blocks of 16 tokens hold the common half and the chat template before it.
        assert 4 * 32 <= level.cached_tokens <= 4 * 80
        assert 0 < (level.roofline_share or 0) < 4
