"""A dry run of the GPU benchmark on a CPU: it checks, measures and writes what it promises."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.py"


def test_dry_run(tmp_path):
    words = "--device cpu --models tiny --batches 1 2 --context 40 --steps 2 --kv-bytes 8000000"
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--no-compare", *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert results["environment"]["device"] == "cpu"
    assert results["bandwidth_bytes_per_second"] > 0
    assert results["kernel_errors"].keys() == {"decode", "prefill"}
    tiny = results["models"]["tiny"]
    assert tiny["checks"].keys() == {"kernels", "fused, in graphs"}
    for batch in ("1", "2"):
        decode = tiny["decode"][batch]
        assert decode["tokens_per_second"] > 0
        assert 0 < decode["share_of_bandwidth_bound"] < 1
    assert tiny["prefill"]["tokens_per_second"] > 0
