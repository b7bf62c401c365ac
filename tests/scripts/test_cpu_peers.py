"""The comparison with peers: command lines, figures of a load, costs of a file, and tables."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stonechat_server.bench.results import RequestRecord
from stonechat_server.bench.targets.target import BenchError

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"
FAKE_SERVER = """
import http.server, json, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        models = json.dumps({"object": "list", "data": [{"id": "fake"}]}).encode()
        known = self.path in ("/health", "/v1/models")
        self.answer(200 if known else 404, "application/json", models)
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = len(asked["messages"][0]["content"].split()) + 10
        piece = {"choices": [{"index": 0, "delta": {"content": "a "}, "finish_reason": None}]}
        ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
        tokens = asked["max_tokens"] - SHORT
        counts = {"prompt_tokens": prompt, "completion_tokens": tokens}
        usage = {"choices": [], "usage": counts | {"total_tokens": prompt + tokens}}
        lines = [json.dumps(chunk) for chunk in (*[piece] * tokens, ended, usage)]
        text = "".join("data: " + line + "\\n\\n" for line in (*lines, "[DONE]"))
        self.answer(200, "text/event-stream", text.encode())
    def log_message(self, *_): pass
held = bytearray(os.urandom(50_000_000))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def record(**fields):
    defaults = {"start": 1.0, "sent": 1.0, "first_token": 3.0, "end": 4.0, "prompt_tokens": 1010}
    return RequestRecord(**(defaults | fields))


def test_command_lines():
    from cpu_peers import read_kind

    peer = read_kind("peer", "ik=/opt/llama-server -rtr")
    assert peer.argv(Path("m.gguf"), 8001, 2, 8, 512) == [
        *("/opt/llama-server", "--host", "127.0.0.1", "--port", "8001", "-m", "m.gguf"),
        *("-t", "2", "-np", "8", "-c", "4096", "-rtr"),
    ]
    ours = read_kind("ours", "plain=--no-prefix-caching").argv(Path("m.gguf"), 8001, 2, 8, 512)
    assert ours[-6:] == ["m.gguf", "--port", "8001", "--threads", "2", "--no-prefix-caching"]
    with pytest.raises(ValueError, match="NAME="):
        read_kind("peer", "/opt/llama-server")


def test_a_server_is_started_measured_and_stopped(tmp_path):
    from servers import free_port, started

    script, port = tmp_path / "server.py", free_port()
    script.write_text("SHORT = 0" + FAKE_SERVER)
    argv = [sys.executable, str(script), "--port", str(port)]
    with started(argv, port, path="/health", log=tmp_path / "log") as server:
        assert server.seconds > 0
        assert 50e6 < server.resident_bytes() < 150e6
    with pytest.raises(ProcessLookupError):
        os.kill(server.process_id, 0)


def load_fake_server(folder, missing_tokens):
    """Figures of a load on a server whose answers lack `missing_tokens` tokens."""
    from peer_rows import Row, figures_of
    from servers import free_port, started

    script, port = folder / "server.py", free_port()
    script.write_text(f"SHORT = {missing_tokens}" + FAKE_SERVER)
    argv = [sys.executable, str(script), "--port", str(port)]
    row = Row("2", 2, 3, 200, 8)
    with started(argv, port, path="/health", log=folder / "log") as server:
        return asyncio.run(figures_of(row, server, seed=1))


def test_figures_of_a_load(tmp_path):
    figures = load_fake_server(tmp_path, missing_tokens=0)
    assert figures["prompt_tokens"] == 200
    assert figures["tokens_per_second"] > 0
    assert figures["prompt_per_second"] > 0
    assert figures["prompt_rate"] == pytest.approx(figures["tokens_per_second"] * 200 / 8)
    assert figures["token_ms"] >= 0
    assert figures["busy_bytes"] > 50e6


def test_an_answer_that_is_too_short_is_an_error(tmp_path):
    with pytest.raises(BenchError, match="every answer has the tokens asked for"):
        load_fake_server(tmp_path, missing_tokens=1)


def test_a_server_that_ends_is_reported(tmp_path):
    from servers import free_port, started

    with (
        pytest.raises(RuntimeError, match="did not start; its output is in"),
        started([sys.executable, "-c", "exit(3)"], free_port(), log=tmp_path / "log"),
    ):
        pass


def test_speed_of_a_prompt_leaves_out_what_a_cache_had():
    from peer_rows import prompt_speed

    assert prompt_speed(record(cached_tokens=10)) == 500
    assert prompt_speed(record(prompt_tokens=900, first_token=None)) == 300


def test_context_holds_prompt_and_answer():
    from peer_rows import ROWS

    for row in ROWS.values():
        assert row.input_tokens + row.output_tokens < row.context < row.input_tokens + 900


def test_cost_of_a_file(tmp_path):
    from gguf import GGUFWriter
    from peer_models import model_cost

    def write(name, shapes):
        writer = GGUFWriter(tmp_path / name, "llama")
        for tensor, shape in shapes.items():
            writer.add_tensor(tensor, np.zeros(shape, dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return model_cost(tmp_path / name)

    shapes = {"token_embd.weight": (100, 32), "blk.0.attn_k.weight": (8, 32)}
    shapes |= {"blk.0.attn_v.weight": (8, 32), "blk.0.attn_norm.weight": (32,)}
    tied = write("tied.gguf", shapes)
    assert (tied.step_bytes, tied.token_operations) == (2 * (3200 + 512), 2 * 512)
    assert (tied.head_operations, tied.token_cache_bytes) == (2 * 3200, 2 * 16)
    own_head = write("own.gguf", shapes | {"output.weight": (200, 32)})
    assert own_head.step_bytes == 2 * (6400 + 512)
    assert own_head.head_operations == 2 * 6400


def test_table():
    from peak import Peak
    from peer_models import ModelCost
    from peer_rows import Measurement
    from peer_table import tables

    def of(server, row, number, **figures):
        return Measurement(model="1B Q4_K_M", server=server, row=row, round=number, figures=figures)

    cost = ModelCost(700_000_000, 640_000_000, 2_000_000_000, 200_000_000, 1000)
    text = tables(
        [
            of("peer", "1", 0, token_ms=25.0, tokens_per_second=39.0),
            of("ours", "1", 0, token_ms=20.0, tokens_per_second=48.0),
            of("ours", "1", 1, token_ms=30.0, tokens_per_second=32.0),
            of("slow", "1", 0, token_ms=50.0, tokens_per_second=20.0),
            of("ours", "32", 0, tokens_per_second=300.0, prompt_rate=100.0),
            of("ours", "1000", 0, prompt_per_second=400.0),
        ],
        {"1B Q4_K_M": cost},
        Peak(32e9, {"VNNI": 1.6e12, "AMX": 1.6e13, "AVX2": 1e12}),
        "ours",
    )
    assert text.splitlines() == [
        "| 1B Q4_K_M | ours | peer | slow | against the best peer | goal | share reached |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1 request, tokens/s | 32 to 48 | 39 | 20 | 1.03x |  |  |",
        "| 1 request, ms a token | 20 to 30 | 25 | 50 | 1.00x | ≤ 23; 85% | 80% of the bandwidth |",
        "| 32 requests, tokens/s | 300 |  |  |  | 3x; 60% | 5% of AMX, 54% of VNNI |",
        "| prompt of 1,000, tokens/s | 400 |  |  |  | 2x; 55% | 5% of AMX, 50% of VNNI |",
    ]


def test_peak_is_read():
    from peak import Peak, read_peak

    peak = read_peak("read 3.2e+10\nAMX 1.2e13\nVNNI 1.5e+12\n")
    assert peak == Peak(3.2e10, {"AMX": 1.2e13, "VNNI": 1.5e12})


def test_show_prints_collected_results(tmp_path):
    collected = tmp_path / "peers.json"
    cost = {"file_bytes": 7, "step_bytes": 6, "token_operations": 2, "head_operations": 1}
    figures = {"start_seconds": 1.5}
    measured = {"model": "tiny", "server": "Stonechat", "row": "start", "round": 0}
    content = {
        "machine": "a processor",
        "threads": 2,
        "costs": {"tiny": cost | {"token_cache_bytes": 1}},
        "peaks": [{"bandwidth": b * 1e9, "int8": {"VNNI": 1e12}} for b in (30, 33, 40)],
        "measurements": [measured | {"figures": figures}],
    }
    collected.write_text(json.dumps(content))
    command = [sys.executable, str(SCRIPTS / "cpu_peers.py"), "--show", "--json", str(collected)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "a processor, 2 threads: reads 33.0 GB/s" in shown.stdout
    assert "| start to ready, s | 1.5 |" in shown.stdout
