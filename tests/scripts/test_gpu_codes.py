"""The sweep of products with codes: a dry run, and the order of its cases."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPTS = Path(__file__).parents[2] / "scripts/gpu"


def test_a_dry_run(tmp_path):
    out = tmp_path / "codes.jsonl"
    command = [sys.executable, str(SCRIPTS / "codes.py"), "--dry-run", "--out", str(out)]
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["tensor_cores"] for line in lines] == [False, True]
    assert all(0 < line["error"] < 0.02 for line in lines)
