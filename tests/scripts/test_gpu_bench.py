"""A dry run of the GPU benchmark on a CPU, and its results, failures and tables."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.nightly import nightly

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench as script

    return script


@pytest.fixture
def children(bench):
    import children as module

    return module


HTTP_AND_COMPARISON = ["--no-http", "--no-compare"]


@pytest.mark.slow
@pytest.mark.parametrize("without", [HTTP_AND_COMPARISON, *nightly([])], ids=["short", "whole"])
def test_dry_run(bench, children, tmp_path, monkeypatch, capfd, without):
    """Its parts have no time limit here, and its figures only need to be there.

    The short run has the parts in this process, which has imported what they need.
    """
    monkeypatch.setattr(children, "SECONDS", dict.fromkeys(children.SECONDS, 1e6))
    if without:
        monkeypatch.setattr(children, "Child", in_this_process(bench, children, monkeypatch))
    status = bench.main(["--dry-run", "--out", str(tmp_path), "--minutes", "1e6", *without])
    output = capfd.readouterr().out
    assert status == 0, output[-4000:]
    sections = json.loads((tmp_path / "bench_gpu.json").read_text())["sections"]
    assert list(sections)[:2] == ["device", "model tiny"]
    device = sections["device"]
    assert device["environment"]["device"] == "cpu"
    assert device["bandwidth_bytes_per_second"] > 0
    assert device["kernel_errors"]["batched"]["prefill, heads of 128, window"] < 1e-4
    tiny = sections["model tiny"]
    assert tiny["checks"]["off"] is False
    assert max(tiny["checks"]["prefill"], tiny["checks"]["decode"]) <= tiny["checks"]["tolerance"]
    modes = ["greedy", "temperature 1", "top-k, top-p", "top-p", "5 logprobs"]
    assert list(tiny["decode"]) == modes
    for batches in tiny["decode"].values():
        for batch in ("1", "2"):
            decode = batches[batch]
            assert decode["tokens_per_second"] > 0
            assert decode["bytes_per_step"] > 40 * int(batch) * tiny["kv_bytes_per_token"]
    assert tiny["prefill"]["tokens_per_second"] > 0
    assert 0 < tiny["mixed"]["steps_with_prompts"] < tiny["mixed"]["steps"]
    assert tiny["profile"]["greedy, batch 1"]["kernels"][0]["microseconds"] > 0
    text = (tmp_path / "bench_gpu.md").read_text()
    assert text.partition("the kernels of a decode step")[0][:-100] in output
    for line in ("| tiny | greedy | 2 |", "--dry-run"):
        assert line in text
    if not without:
        assert "| tiny | 4 |" in text
        assert list(sections)[2:] == ["http tiny", "compare tiny"]
        check_http(sections["http tiny"])
        assert sections["compare tiny"].keys() >= {"generate", "generate_batch"}


def in_this_process(bench, children, monkeypatch):
    """Return a class of parts that `bench.main` runs as the process of a part does."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)

    class Part(children.Child):
        def __init__(self, name, notes, words):
            self.name, self._notes = name, notes
            part = [*words, "--part", name, "--notes", str(notes)]
            self.process = SimpleNamespace(wait=lambda seconds: bench.main(part))

        def begin(self, seconds):
            monkeypatch.setattr(sys, "stdin", io.StringIO(f"{time.time() + seconds}\n"))

        def end(self):
            pass

    return Part


def check_http(http):
    assert http["num_errors"] == 0
    assert http["seconds_by_phase"]["read"] > 0
    busy = "the load generator was not the bottleneck"  # a busy machine may make it one
    assert [check for check in http["failed_checks"] if not check.startswith(busy)] == []
    assert http["in_process_tokens_per_second"] > 0
    assert http["tokens_per_second"] > 0
    assert http["seconds_from_command_to_first_token"] > 0
    assert http["first_token_p50_seconds"] > 0
    assert http["busiest_cores"]["server"] > 0


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


@pytest.mark.nightly
def test_a_part_that_fails_is_reported_and_the_rest_runs(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "parts", lambda _: ["model nothing", "model neither"])
    assert bench.main(["--out", str(tmp_path), "--dry-run"]) == 1
    sections = json.loads((tmp_path / "bench_gpu.json").read_text())["sections"]
    assert sections["model nothing"]["error"].startswith("KeyError: 'nothing'")
    assert sections["model neither"]["error"].startswith("KeyError: 'neither'")
    assert "- model nothing: KeyError" in capsys.readouterr().out


def part_that_ends(end, tmp_path):
    """A script that has found something when it runs the line `end`."""
    script = tmp_path / "part.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "sys.stdin.readline()\n"
        "notes = pathlib.Path(sys.argv[sys.argv.index('--notes') + 1])\n"
        "notes.with_suffix('.tmp').write_text('{\"found\": 1}')\n"
        "notes.with_suffix('.tmp').replace(notes)\n"
        f"{end}\n"
    )
    return script


def test_a_part_that_is_killed_keeps_its_results(bench, children, tmp_path, monkeypatch):
    """As the kernel kills one that takes all memory."""
    script = part_that_ends("os.kill(os.getpid(), 9)", tmp_path)
    monkeypatch.setattr(children, "SCRIPT", script)
    results = {}
    children.Child("device", tmp_path / "part.json", ["--out", str(tmp_path)]).run(100.0, results)
    assert results == {"found": 1, "error": "ended by signal 9"}


def test_a_part_that_hangs_is_ended_and_keeps_its_results(bench, children, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "SCRIPT", part_that_ends("time.sleep(600)", tmp_path))
    monkeypatch.setitem(children.SECONDS, "device", 1.0)
    wait = subprocess.Popen.wait
    notes = tmp_path / "part.json"

    def wait_for_notes(process, timeout=None):
        """The time limit is over when the notes are there."""
        if timeout != 1.0:
            return wait(process, timeout)
        while not notes.is_file():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait_for_notes)
    results = {}
    children.Child("device", notes, ["--out", str(tmp_path)]).run(100.0, results)
    assert results == {"found": 1, "error": "ended after 1 s"}


def test_a_part_is_imported_while_the_one_before_runs(bench, children, tmp_path, monkeypatch):
    """The one after it is not, and none is left at the end."""
    started, ended = [], []

    class Child:
        def __init__(self, name, notes, words):
            started.append(name)
            self.end = lambda: ended.append(name)

    monkeypatch.setattr(children, "Child", Child)
    processes = children.Children(["a", "b", "c"], tmp_path, None)
    assert started == ["a"]
    next(iter(processes))
    assert started == ["a", "b"]
    processes.close()
    assert ended == ["b"]


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
        "host_milliseconds_per_step": 2.0,
        "graphs_per_step": 1.0,
        "bytes_per_step": 16e9,
    }
    times = {"microseconds": 70.5, "microseconds_added": 60.25}
    kernels = [{"name": "a_kernel", "grid": "8x1x1", "calls": 32.0, **times}]
    model = {
        "checks": {"tolerance": 0.25, "off": True, "prefill": 0.1, "decode": 0.3},
        "decode": {"greedy": {"1": decode, "8": {"error": "OutOfMemoryError: no room\nmore"}}},
        "profile": {"greedy, batch 1": {"milliseconds": 9.0, "kernels": kernels}},
        "prefill": {"tokens_per_second": 5000.0, "flops_per_second": 3e14},
        "seconds_to_ready": 3.0,
        "seconds_by_phase": {"read": 1.0, "graphs": 1.5},
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
    http = {
        "streams": 4,
        "in_process_tokens_per_second": 200.0,
        "tokens_per_second": 150.0,
        "busiest_cores": {"server": 0.5},
        "load_generator_cores": 0.25,
        "first_token_p50_seconds": None,  # no request got one
        "seconds_from_command_to_first_token": 20.0,
        "in_one_process": {"seconds_from_command_to_first_token": 30.0, "error": "it hangs"},
    }
    compared = {"generate": {"1": 50.0}}
    sections = {"device": device, "model m": model, "http m": http, "compare m": compared}
    text = markdown({"command": "bench", "seconds": 1.0, "sections": sections})
    assert "A GPU; driver 1.2, PyTorch 2.13. `bench`, 1 s." in text
    assert "| m (!) | greedy | 1 | 100 | 10.000 | 80% | 9.000 | 2.000 | 1 |" in text
    assert "| m | 5000 | 50% | triton | yes | fp8 | 0.1, 0.3 of 0.25 |" in text
    assert "| model m | 3.0 | read 1.0, graphs 1.5 |" in text
    assert "| m | generate, 1 | 50 | 2.0 |" in text
    assert "| m | 4 | 200 | 150 | 75% | server 0.50 | 0.25 | 0.000 | 20.0 |" in text
    assert "m, server and engine in one process" not in text
    assert "- http m, in_one_process: it hangs\n" in text
    assert "| 60.2 | 70.5 | 32.0 | a_kernel | 8x1x1 |" in text
    assert "- model m, decode, greedy, 8: OutOfMemoryError: no room\n" in text


def test_what_a_kernel_adds_to_a_step(bench):
    """The second starts early and waits for the first; the third starts after a pause."""
    from measure import kernel_times

    def event(name, start, end, grid):
        return {"name": name, "ts": start, "dur": end - start, "args": {"grid": grid}}

    events = [
        event("early", 101.0, 150.0, [4, 1, 1]),
        event("first", 100.0, 140.0, [2, 1, 1]),
        event("early", 160.0, 190.0, [8, 1, 1]),
    ]
    found = kernel_times(events, num_steps=2)
    assert [tuple(kernel.values()) for kernel in found["kernels"]] == [
        ("first", "2x1x1", 0.5, 20.0, 20.0),
        ("early", "8x1x1", 0.5, 15.0, 20.0),
        ("early", "4x1x1", 0.5, 24.5, 5.0),
    ]
    assert found["milliseconds"] == pytest.approx((50 + 30) / 2 / 1e3)
    assert found["calls"] == 1.5


def test_the_busiest_second_of_a_process(bench):
    from cores import busiest

    assert busiest([0.0, 0.0, 0.1, 0.1, 0.2, 0.9, 1.0, 1.1, 1.2]) == pytest.approx(1.0)
    assert busiest([0.0, 0.5]) == pytest.approx(2.0)
    assert busiest([5.0]) == 0.0


def test_an_interrupted_run_keeps_its_results(bench, children, tmp_path, monkeypatch):
    def interrupted(child, seconds_left, results):
        child.end()
        results["found"] = 1
        raise KeyboardInterrupt

    monkeypatch.setattr(children.Child, "run", interrupted)
    bench.main(["--out", str(tmp_path), "--dry-run"])
    results = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert results["sections"] == {"device": {"found": 1}}


def test_the_tables_are_there_after_each_part(bench, children, tmp_path, monkeypatch):
    """The machine may be taken away during the next."""
    table = tmp_path / "bench_gpu.md"

    class Part:
        def __init__(self, name, notes, words):
            self.name = name

        def run(self, seconds_left, results):
            results["error"] = f"{self.name} failed"
            seen.append(table.read_text() if table.is_file() else "")

        def end(self):
            pass

    seen = []
    monkeypatch.setattr(children, "Child", Part)
    bench.main(["--out", str(tmp_path), "--dry-run"])
    assert ["device failed" in text for text in seen] == [False, True, True, True]


def test_a_step_that_fails_is_not_timed(bench):
    """Its sequences end, so that later steps would seem to take no time."""
    from measure import Load

    failed = SimpleNamespace(error="the model failed on this request", finish_reason="error")
    engine = SimpleNamespace(
        model=SimpleNamespace(info=SimpleNamespace(vocab_size=100)),
        add=lambda request: None,
        abort=lambda request_id: None,
        step=lambda: [failed],
        has_work=False,
    )
    load = Load(engine, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="the model failed"):
        load.decode(1, 8, 2)


@pytest.mark.parametrize(
    ("engine", "plain", "off"),
    [(0.2, 0.2, False), (0.6, 0.4, False), (0.6, 0.1, True), (float("nan"), 0.4, True)],
    ids=["near", "rounding", "wrong", "not a number"],
)
def test_logits_are_off_if_the_plain_model_is_nearer_to_float32(bench, engine, plain, off):
    """`engine` and `plain`: their errors, on two sides of the logits in float32."""
    from checks import Expected, verdict

    exact = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    unit = exact.std()
    expected = Expected(plain=[exact - plain * unit] * 2, exact=[exact] * 2)
    found = verdict(expected, [exact + engine * unit] * 2, 0.5, is_mixture=False)
    assert found["off"] is off
    if engine == engine:
        assert found["decode"] == pytest.approx(engine + plain, rel=0.1)


def test_states_that_are_off_are_named_and_the_model_is_timed(bench):
    from engines import named

    from stonechat_models.errors import UnsupportedModelError

    def refuses(*_):
        raise UnsupportedModelError("off by 0.3 standard deviations")

    lines = []
    assert named(refuses, lines.append)("model", "module") is True
    assert lines == ["OFF: off by 0.3 standard deviations"]
    assert named(lambda is_exact: is_exact, lines.append)(False) is False


def test_a_server_whose_model_fails_is_not_asked_again(bench, tmp_path):
    from http_load import _wait_for_first_token

    statuses = [503, 500]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(statuses.pop(0))

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        process = SimpleNamespace(poll=lambda: None)
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with pytest.raises(RuntimeError, match="500"):
            _wait_for_first_token(url, process, tmp_path / "log", time.monotonic() + 60)
        server.shutdown()
    assert statuses == []


def test_a_server_that_dies_under_load_leaves_its_figures(bench, tmp_path, monkeypatch):
    import http_load

    log = tmp_path / "log"
    log.write_text("0.1 s  loading\n0.2 s  stonechat.access refused\n")
    server = SimpleNamespace(pid=os.getpid()), 1, log
    monkeypatch.setattr(http_load, "_server", lambda *_: contextlib.nullcontext(server))
    monkeypatch.setattr(http_load, "_wait_for_first_token", lambda *_: None)

    async def dies(settings):
        raise OSError("it is gone")

    monkeypatch.setattr(http_load, "run_bench", dies)
    noted = {}
    load = {"streams": 1, "num_requests": 1, "num_tokens": 1, "timeout": 1.0}
    with pytest.raises(OSError, match="gone"):
        http_load.measure_over_http(tmp_path, [], **load, note=lambda **new: noted.update(new))
    assert noted.pop("seconds_from_command_to_first_token") > 0
    assert noted == {"server_log": ["0.1 s  loading"]}


def test_a_message_of_the_engine_is_shown_once(bench):
    from sections import Once

    once = Once()
    first, second, other = (
        logging.LogRecord("engine", logging.ERROR, "", 0, text, (i,), None)
        for i, text in enumerate(("request %s failed", "request %s failed", "another"))
    )
    assert [once.filter(record) for record in (first, second, other)] == [True, False, True]


def test_a_mixture_reads_the_experts_that_its_tokens_choose(bench):
    from shapes import SHAPES, build_module, step_bytes

    shape = SHAPES["qwen3-30b-a3b-12-layers"]
    small = {"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 32}
    small |= {"intermediate_size": 32, "moe_intermediate_size": 16}
    module = build_module(
        replace(shape, arguments={**shape.arguments, **small}), torch.device("cpu"), torch.float32
    )
    sizes = step_bytes(module)
    experts = sum(size for size, idle in sizes if idle)
    assert experts == 128 * 3 * 16 * 32 * 4
    assert {idle for _, idle in sizes} == {0.0, 1 - 8 / 128}
    whole = sum(p.numel() * 4 for p in module.parameters())
    assert sum(size for size, _ in sizes) == whole - 64 * 32 * 4
