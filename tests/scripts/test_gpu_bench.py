"""A dry run of the GPU benchmark on a CPU, and its results, failures and tables."""

import json
import subprocess
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench as script

    return script


@pytest.mark.slow
def test_dry_run(bench, tmp_path, monkeypatch, capfd):
    """Its parts have no time limit here, and its figures only need to be there."""
    monkeypatch.setattr(bench, "SECONDS", dict.fromkeys(bench.SECONDS, 1e6))
    status = bench.main(["--dry-run", "--out", str(tmp_path), "--minutes", "1e6"])
    output = capfd.readouterr().out
    assert status == 0, output[-4000:]
    sections = json.loads((tmp_path / "bench_gpu.json").read_text())["sections"]
    assert list(sections) == ["device", "model tiny", "http tiny", "compare tiny"]
    device = sections["device"]
    assert device["environment"]["device"] == "cpu"
    assert device["bandwidth_bytes_per_second"] > 0
    assert device["kernel_errors"]["batched"]["prefill, heads of 128, window"] < 1e-4
    tiny = sections["model tiny"]
    assert tiny["checks"].keys() == {"kernels", "fused", "graphs"}
    for batch in ("1", "2"):
        decode = tiny["decode"][batch]
        assert decode["tokens_per_second"] > 0
        assert decode["bytes_per_step"] > 40 * int(batch) * tiny["kv_bytes_per_token"]
    assert tiny["prefill"]["tokens_per_second"] > 0
    http = sections["http tiny"]
    assert http["num_errors"] == 0
    busy = "the load generator was not the bottleneck"  # a busy machine may make it one
    assert [check for check in http["failed_checks"] if not check.startswith(busy)] == []
    assert http["share_of_in_process"] > 0
    assert http["seconds_from_command_to_first_token"] > 0
    assert http["first_token_p50_seconds"] > 0
    assert sections["compare tiny"].keys() >= {"generate", "generate_batch"}
    text = (tmp_path / "bench_gpu.md").read_text()
    assert text in output
    for line in ("| tiny | 2 |", "| tiny | 4 |", "--dry-run"):
        assert line in text


def test_order_of_parts(bench):
    arguments = bench.parse_arguments(["--out", "x", "--models", "qwen3-0.6b", "llama-3.2-1b"])
    assert bench.parts(arguments) == [
        "device",
        "model qwen3-0.6b",
        "model llama-3.2-1b",
        "http llama-3.2-1b",
        "compare qwen3-0.6b",
        "compare llama-3.2-1b",
    ]


def test_a_part_that_fails_is_reported_and_the_rest_runs(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "parts", lambda _: ["model nothing", "device"])
    assert bench.main(["--out", str(tmp_path), "--dry-run"]) == 1
    sections = json.loads((tmp_path / "bench_gpu.json").read_text())["sections"]
    assert sections["model nothing"]["error"].startswith("KeyError: 'nothing'")
    assert "error" not in sections["device"]
    assert "- model nothing: KeyError" in capsys.readouterr().out


def test_a_part_that_hangs_is_ended_and_keeps_its_results(bench, tmp_path, monkeypatch):
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        "import pathlib, sys, time\n"
        "notes = pathlib.Path(sys.argv[sys.argv.index('--notes') + 1])\n"
        "notes.with_suffix('.tmp').write_text('{\"found\": 1}')\n"
        "notes.with_suffix('.tmp').replace(notes)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(bench, "__file__", str(hanging))
    monkeypatch.setitem(bench.SECONDS, "device", 1.0)
    wait = subprocess.Popen.wait

    def wait_for_notes(process, timeout=None):
        """The time limit is over when the notes are there."""
        if timeout is None:
            return wait(process)
        while not (tmp_path / "part.json").is_file():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_notes)
    assert bench.run_child("device", 100.0, tmp_path, ["--out", str(tmp_path)]) == {
        "found": 1,
        "error": "ended after 1 s",
    }


def test_without_time_everything_is_skipped_and_named(bench, tmp_path, capsys):
    assert bench.main(["--out", str(tmp_path), "--dry-run", "--minutes", "0"]) == 0
    text = capsys.readouterr().out
    for name in ("device", "model tiny", "http tiny", "compare tiny"):
        assert f"- {name}: out of time" in text


def test_the_tables_of_a_gpu(bench):
    from table import markdown

    decode = {
        "tokens_per_second": 100.0,
        "milliseconds_per_step": 10.0,
        "bytes_per_step": 16e9,
        "kernel_milliseconds_per_step": 9.0,
        "tokens_per_second_with_top_p": 90.0,
    }
    model = {
        "decode": {"1": decode, "8": {"error": "OutOfMemoryError: no room\nmore"}},
        "prefill": {"tokens_per_second": 5000.0, "flops_per_second": 3e14},
        "seconds_to_ready": 3.0,
        "in_graphs": True,
        "attention": "triton",
        "quantization": "fp8",
    }
    device = {
        "environment": {"name": "A GPU", "driver": "1.2", "torch": "2.13"},
        "bandwidth_bytes_per_second": 3e12,
        "read_bytes_per_second": 2e12,
        "matmul_flops": 6e14,
        "attention": "triton",
    }
    sections = {"device": device, "model m": model, "compare m": {"generate": {"1": 50.0}}}
    text = markdown({"command": "bench", "seconds": 1.0, "sections": sections})
    assert "A GPU; driver 1.2, PyTorch 2.13. `bench`, 1 s." in text
    assert "| m | 1 | 100 | 10.00 | 80% | 9.00 | 1.00 | 90 |" in text
    assert "| m | 5000 | 50% | 3.0 | yes | triton | fp8 |" in text
    assert "| m | generate, 1 | 50 | 2.0 |" in text
    assert "- model m, decode, 8: OutOfMemoryError: no room\n" in text
